"""A device that takes the agent's text and then gives prepared answers, one for each question, whatever it is.

Run as `python answering.py ANSWERS …`: a JSON list; a mapping is sent as a line of JSON, a text as it is, [text, n] n times.
"""

import json
import sys


def main():
    lines, out = sys.stdin.buffer, sys.stdout.buffer
    lines.read(int(lines.readline()))
    for answer in json.loads(sys.argv[1]):
        asked = lines.readline()
        if not asked:
            break
        lines.read(json.loads(asked)["bytes"])
        if isinstance(answer, dict):
            out.write(json.dumps(answer).encode() + b"\n")
        else:
            text, times = answer if isinstance(answer, list) else (answer, 1)
            out.write(text.encode("latin-1") * times)
        out.flush()
    lines.read()


if __name__ == "__main__":
    main()
