// Checks that @msgpack/msgpack reads and writes the messages of docs/protocol_vectors.json as they
// are there: node check_vectors.mjs FILE. Prints what differs; the exit status is 1 then.

import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import { decode, encode } from "@msgpack/msgpack";

const { vectors } = JSON.parse(readFileSync(process.argv[2], "utf-8"));
let failures = 0;

function check(name, what, right) {
  if (right) return;
  failures += 1;
  console.error(`${name}: ${what}`);
}

for (const { name, from, message, hex } of vectors) {
  const frame = Buffer.from(hex, "hex");
  check(name, "is read differently", isDeepStrictEqual(decode(frame), message));
  if (from === "client") {
    check(name, "is written differently", frame.equals(encode(message)));
  }
}
console.log(`${vectors.length} messages, ${failures} differences`);
process.exitCode = failures ? 1 : 0;
