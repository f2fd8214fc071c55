"""The process that draws: Vega-Lite to PNG, and the page's drawing script, by vl-convert. Run as a file, never imported by us.

vl-convert holds a JavaScript engine that reserves tens of gigabytes of addresses and ends its whole process where it may not
(`ulimit -v`, usual on clusters). It is asked on stdin with one JSON object (spec, scale, vl_version, snippet,
memory_bytes) and answers on stdout with two parts, each its length in 8 bytes and then the bytes: the PNG (empty without a spec)
and the script.
"""

import contextlib
import json
import os
import resource
import sys


def main() -> None:
    """Answer one request."""
    # Its own folder is no place to import from: it holds modules with common names.
    sys.path.pop(0)
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, asked["memory_bytes"])):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
    import vl_convert

    version = asked["vl_version"]
    png = (
        b""
        if asked["spec"] is None
        else vl_convert.vegalite_to_png(asked["spec"], vl_version=version, scale=asked["scale"])
    )
    script = (
        b"" if asked["snippet"] is None else vl_convert.javascript_bundle(asked["snippet"], vl_version=version).encode()
    )
    for part in (png, script):
        answer.write(len(part).to_bytes(8, "big") + part)
    answer.flush()


if __name__ == "__main__":
    main()
