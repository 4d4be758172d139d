// Streams one completion from a running server. Written from docs/protocol.md alone.
//
//   npm install && node client.mjs "def fibonacci(n):" tcp://127.0.0.1:5555
//
// PDV_TOKEN holds the token, where the server asks for one. Ctrl-C cancels the request.

import { randomInt } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const SILENCE_MS = 5000; // after which what is open counts as lost
const MAX_ATTEMPTS = 3;

const [prompt = "def fibonacci(n):", endpoint = "tcp://127.0.0.1:5555"] = process.argv.slice(2);

const generate = {
  type: "generate",
  id: "1",
  prompt,
  max_tokens: 64,
  temperature: 0.7,
  // A seed of our own: a request that was lost and is sent again gives the same tokens.
  seed: randomInt(2 ** 47),
};

let socket = null;
let identity = null; // the server's instance and our connection's number, as last heard
let printed = 0; // characters of the text so far, whatever attempt they came with
let received = 0; // characters of this attempt

// One after the other: a socket sends one message at a time.
let sending = Promise.resolve();
function send(message) {
  const frame = encode({ v: 1, ...message }, { ignoreUndefined: true });
  sending = sending.then(() => socket.send(frame));
  return sending;
}

async function begin() {
  received = 0;
  await send({ type: "hello", client: "node example", token: process.env.PDV_TOKEN });
  await send(generate);
}

/** Handles a message; true once the request is over. */
async function handle(message) {
  switch (message.type) {
    case "welcome":
      console.error(`[${message.model} on ${message.topology}, version ${message.version}]`);
    // falls through: these three say who is speaking
    case "pong":
    case "alive": {
      const now = `${message.instance} ${message.connection}`;
      const replaced = identity !== null && identity !== now;
      identity = now;
      if (replaced) await begin(); // libzmq reconnected in silence: what was open is lost
      return false;
    }
    case "tokens": {
      const text = message.text.slice(Math.max(0, printed - received));
      received += message.text.length;
      printed = Math.max(printed, received);
      process.stdout.write(text);
      return false;
    }
    case "done": {
      const { usage, speculation, timing } = message;
      const kept = `${speculation.accepted} of ${speculation.drafted} draft tokens kept`;
      const time = `first after ${timing.ttft_ms?.toFixed(0)} ms`;
      console.error(`\n[${message.finish}: ${usage.completion_tokens} tokens, ${time}, ${kept}]`);
      return true;
    }
    case "error":
      if (message.code === "queue_full") {
        setTimeout(() => send(generate), message.retry_after_ms);
        return false;
      }
      throw new Error(`${message.code}: ${message.message}`);
    default: // accepted, and whatever a later server may add
      return false;
  }
}

async function complete() {
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt += 1) {
    socket = new Dealer({ linger: 0, receiveTimeout: SILENCE_MS });
    socket.connect(endpoint); // libzmq chooses the routing id; the server wants it so
    identity = null;
    try {
      await begin();
      for await (const [frame] of socket) {
        if (await handle(decode(frame))) return;
      }
    } catch (error) {
      if (error.code !== "EAGAIN") throw error; // silence: try again on a new connection
    } finally {
      socket.close();
    }
  }
  throw new Error(`nothing was heard from ${endpoint}; is a server running there?`);
}

process.once("SIGINT", () => send({ type: "cancel", id: generate.id }));

try {
  await complete();
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
