"""A program that speaks the peers' lines and computes nothing: ``fake_peer.py BEHAVIOUR FILE``.

Its tokens follow from the prompt alone. ``FILE`` gets a line for every request for tokens.
"""

import json
import os
import sys
import time


def tokens_of(prompt: list[int], count: int) -> list[int]:
    return [(sum(prompt) + at) % 97 for at in range(count)]


def main() -> None:
    behaviour, path = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("a library says hello on standard output")

    def say(**message: object) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    sys.stdin.readline()
    if behaviour == "broken":
        say(error="ImportError: no module named engine")
        return
    say(ready=True, version="1.0")
    for line in sys.stdin:
        request = json.loads(line)
        prompts, count = request["prompts"], request["tokens"]
        with open(path, "a") as file:
            file.write(json.dumps(request) + "\n")
        if behaviour == "judge":
            found = [
                [
                    0,
                    sum(
                        a != b
                        for a, b in zip(text[count:], tokens_of(text[:count], 999), strict=False)
                    ),
                ]
                for text in prompts
            ]
            say(ids=found, seconds=0.01)
            continue
        if behaviour == "dies" and count > 2:
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(3)
        while behaviour == "hangs":
            time.sleep(60)
        ids = [tokens_of(prompt, count) for prompt in prompts]
        if behaviour == "wrong":
            ids[0][-1] += 1
        if behaviour == "short" and count > 2:
            ids[-1].pop()
        seconds = {"slow": 5.0, "quick": 0.5}.get(behaviour, 1.0)
        drafts = {"cycles": 10, "drafted": 40, "accepted": 20}
        say(ids=ids, seconds=seconds * (1 if count > 1 else 0.25), speculation=drafts)


if __name__ == "__main__":
    main()
