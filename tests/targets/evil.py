"""A worker that answers as ours does, and lies where it is told to. The standard library only, so that it starts at once.

Run as `python evil.py LIE …`: LIE is JSON, `{"at": COMMAND, …}` with one of the ways to lie below. A request may bring a lie of
its own in `lie`. What follows LIE (the interpreter and the start of a worker, behind a target's prefix) is not looked at.
"""

import json
import os
import struct
import sys
import time

FACTS = {
    "runtime": "evil", "runtime_version": "1", "provider": "cpu", "threads": 1, "precision": None,
    "precision_reason": "it executes nothing", "details": {},
}  # fmt: skip
PHASES = {"load": {"peak_rss_bytes": 1000, "pss_bytes": None}}
TENSOR = {"name": "x", "dtype": "float32", "shape": ["N", 4]}
METER = {
    "name": "rapl", "kind": "counter", "rails": ["package"], "total_rails": ["package"], "coverage": "all of it",
    "update_s": 0.001, "powers": [], "settle_s": 0.0, "notes": [],
}  # fmt: skip
ENVIRONMENT = {
    "hostname": "evil", "machine": "x86_64", "system": "Linux 6", "python": "3.11", "cpu_model": None, "cpu_isa": [],
    "logical_cores": 2, "usable_cores": 2, "memory_bytes": 1 << 30, "hypervisor": None, "gpus": [], "versions": {},
}  # fmt: skip
OP = {
    "name": "conv", "op_type": "Conv", "precision": "f32", "provider": "cpu", "duration_s": 1e-5, "calls": 1.0, "kernel": None,
    "origins": [],
}  # fmt: skip
CORES = {"isa": ["avx2"], "usable_cores": 2, "switches": {}, "cache_bytes": None, "bandwidth_bytes_per_s": 1e9}


def column(name, values, dtype="<i8", code="q"):
    return name, dtype, [len(values)], struct.pack(f"<{len(values)}{code}", *values)


def honest(asked, protocol):
    """What a worker of ours would answer, and its arrays."""
    count = max(int(asked.get("min_samples", 3)), 12)
    windows = -(-count // int(asked.get("label_every", 1)))
    rows = asked["arrays"][0]["shape"][0] if asked["arrays"] else 1
    window = {
        "energy_j": {"package": 1.0},
        "inferences": 10,
        "wall_s": 0.1,
        "started_unix_s": time.time(),
        "readings": 9,
    }
    told = {
        "hello": {"protocol": protocol, "pid": os.getpid(), "python": "3.11", "platform": "linux", "conditions": {}},
        "environment": {"environment": ENVIRONMENT},
        "availability": {"available": True, "version": "1", "reason": None, "install": None},
        "have": {"have": True, "offset": asked.get("size", 0)},
        "put": {"offset": 0},
        "load": {
            "import_s": 0.1, "load_s": 0.01, "rss_before_load_bytes": None, "phases": PHASES, "inputs": [TENSOR],
            "outputs": [TENSOR],
        },
        "feed": {"turns": 1},
        "first": {"first_inference_s": 0.001, "phases": PHASES},
        "time": {
            "started_s": time.monotonic(), "cpu_s": 0.01, "wall_s": 0.01, "labels": {"steal_share": 0.0}, "parked_cpu_s": 0.0,
            "harness": {"in_sample_s": 1e-7, "labelled_s": 1e-6},
        },
        "memory": {"rss_bytes": 1000, "peak_rss_bytes": 2000, "phases": PHASES, "memory_notes": []},
        "facts": {"facts": FACTS},
        "ops": {"wall_s": 0.001, "facts": FACTS, "ops": [OP], "reason": None, "machine": CORES},
        "serve": {
            "ended": "complete", "started_s": 1.0, "cpu_s": 0.1, "wall_s": 0.1, "labels": {}, "generator_cpu_s": None,
            "padded_to": None,
        },
        "loadgen": {"samples": 10, "padded_to": None},
        "energy": {"meters": [METER], "absent": [{"meter": "nvml", "reason": "no GPU"}]},
        "infer": {},
    }  # fmt: skip
    arrays = {
        "time": [
            column("durations_ns", [1_000_000] * count), column("window_ns", [1_000_000] * windows),
            column("canary_ns", [12_000, 12_000]), column("canary_at", [0, count]),
        ],
        "serve": [column(name, [10, 20, 30]) for name in ("sent_ns", "started_ns", "completed_ns", "batch_size")],
        "loadgen": [(f"log/mlperf_log_{name}.txt", "|u1", [2], b"ok") for name in ("summary", "detail")],
        "infer": [("y", "<f4", [rows, 2], struct.pack(f"<{2 * rows}f", *range(2 * rows)))],
    }  # fmt: skip
    answer = told[asked["command"]]
    if asked["command"] == "energy" and asked.get("clock"):
        answer = {"unix_s": time.time()}
    elif asked["command"] == "energy" and asked.get("window_s") is not None:
        answer = {"window": window, "meter": METER}
    return {"ok": True, **answer}, arrays.get(asked["command"], [])


def changed(value, path, new):
    """A copy in which the place `path` (`a.b.0`) holds `new`; `"GONE"` takes it away."""
    key, _, rest = path.partition(".")
    copy = list(value) if isinstance(value, list) else dict(value)
    place = int(key) if isinstance(value, list) else key
    if rest:
        copy[place] = changed(copy[place], rest, new)
    elif new == "GONE":
        copy.pop(place)
    else:
        copy[place] = new
    return copy


def frame(answer, arrays):
    listed = [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape, _ in arrays]
    text = json.dumps({**answer, "arrays": listed}).encode()
    return struct.pack(">I", len(text)) + text + b"".join(data for *_, data in arrays)


def write(data, times=1, pause_s=0.0):
    while times:
        os.write(1, data)
        times -= 1
        time.sleep(pause_s)


def untrue(lie, answer, arrays):
    """The answer and its arrays with what the lie changes in them."""
    for path, new in lie.get("set", {}).items():
        answer = changed(answer, path, new)
    for name, dtype, shape, text in lie.get("arrays", ()):
        arrays = [array for array in arrays if array[0] != name] + [(name, dtype, shape, bytes.fromhex(text))]
    if "many" in lie:
        arrays = [(str(number), "|u1", [0], b"") for number in range(lie["many"])]
    return answer, [array for array in arrays if array[0] not in lie.get("without", ())]


def header(lie):
    """A header of any text, with its true or another length."""
    text = lie["text"].encode("latin-1") if "text" in lie else b""
    if "nested" in lie:
        text = b'{"arrays": [], "ok": ' + b"[" * lie["nested"] + b"]" * lie["nested"] + b"}"
    return struct.pack(">I", lie.get("length", len(text))) + text


def lie_about(lie, answer, arrays):
    """Send the lie in place of the truth."""
    data = header(lie) if "text" in lie or "nested" in lie else frame(*untrue(lie, answer, arrays))
    for _ in range(lie.get("shout", 0)):  # so many megabytes on standard error
        os.write(2, b"\x1b[2Jlast words \x07\n" * 65536)
    if "forever" in lie:
        write(lie["forever"].encode() * 4096, times=-1)
    if "kill" in lie:
        os.kill(os.getpid(), lie["kill"])
    if "drip_s" in lie:
        for number in range(len(data)):
            write(data[number : number + 1], pause_s=lie["drip_s"])
    elif "cut" in lie:
        cut_short(lie, data)
    else:
        write(data)


def cut_short(lie, data):
    """The beginning of the answer, and then silence, a closed pipe or the end."""
    write(data[: lie["cut"]])
    if lie.get("then") == "exit":
        os._exit(lie.get("code", 0))
    if lie.get("then") == "close":
        os.close(1)
    time.sleep(600)


def main():
    lie = json.loads(sys.argv[1])
    stream = os.fdopen(0, "rb")
    while len(prefix := stream.read(4)) == 4:
        asked = json.loads(stream.read(struct.unpack(">I", prefix)[0]))
        for array in asked["arrays"]:
            size = int("".join(filter(str.isdigit, array["dtype"])))
            for count in array["shape"]:
                size *= count
            stream.read(size)
        answer, arrays = honest(asked, lie.get("protocol", 0))
        told = asked.get("lie") or (lie if lie.get("at") == asked["command"] else {})
        lie_about(told, answer, arrays)


if __name__ == "__main__":
    main()
