"""The worker answers every command, lets nothing but the protocol on its pipe, and needs little to be installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from backends.fake import FakeBackend
from profiler import wire, worker
from profiler.targets.base import Target, local
from profiler.targets.process import WorkerFailure, WorkerProcess

ROOT = Path(__file__).parents[1]


@pytest.fixture
def state(tmp_path):
    return worker.State(tmp_path / "cache")


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"anything")
    return path


def ask(state, command, arrays=None, **fields):
    return worker._answer(state, {"command": command, **fields}, arrays or {})


def load(state, artifact, **options):
    return ask(state, "load", backend="fake", path=str(artifact), threads=1, batch=1, options=options)[0]


def test_an_unknown_command_is_answered_with_the_known_ones(state):
    """A newer parent gets words, not silence."""
    reply, _ = ask(state, "dance")

    assert (reply["ok"], reply["kind"]) == (False, "error")
    assert "'dance'" in reply["message"]
    assert "hello" in reply["message"]


@pytest.mark.parametrize("command", ["facts", "feed", "first", "time", "infer"])
def test_commands_before_load_say_so(state, command):
    """In any order of commands the worker lives on."""
    reply, _ = ask(state, command, {"x": np.zeros(1)})

    assert "send 'load' first" in reply["message"]


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("load", {}), ("put", {}), ("have", {"sha256": "a" * 64}), ("load", {"backend": "nosuch"}),
        ("availability", {"backend": "ortt"}),
    ],
)  # fmt: skip
def test_incomplete_commands_are_answered(state, command, fields):
    """A missing field or unknown backend is a failure in words."""
    reply, _ = ask(state, command, **fields)

    assert not reply["ok"]
    assert reply["message"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("NOT_IMPLEMENTED : Could not find an implementation for QLinearX(1)", "unsupported"),
        ("Check failed: OpConversionFailure: no conversion rule for Foo", "unsupported"),
        ("Failed to allocate memory for requested buffer of size 99", "out_of_memory"),
        ("std::bad_alloc", "out_of_memory"),
        ("invalid protobuf", "error"),
    ],
)
def test_kinds_are_read_from_the_runtimes_words(state, artifact, monkeypatch, error, kind):
    """One exception class for everything: the words decide."""

    def refuse(self, path, options):
        raise RuntimeError(error)

    monkeypatch.setattr(FakeBackend, "load", refuse)

    assert kind == load(state, artifact)["kind"]


def test_feeds_that_do_not_fit_are_refused_before_timing(state, artifact):
    """Names, dtypes and ranks are checked at the border, once."""
    load(state, artifact)
    wrong = (
        {"0/y": np.zeros((1, 4), "f4")},
        {"0/x": np.zeros((1, 4))},
        {"0/x": np.zeros(4, "f4")},
        {"x": np.zeros((1, 4), "f4")},
    )
    replies = [ask(state, "feed", arrays)[0] for arrays in wrong]

    assert [reply["ok"] for reply in replies] == [False] * 4
    assert state.feeds == []


def test_received_arrays_can_be_written_to(state, artifact):
    """Some runtimes refuse read-only views."""
    load(state, artifact)
    frozen = np.frombuffer(np.zeros(4, "f4").tobytes(), "f4").reshape(1, 4)
    ask(state, "feed", {"0/x": frozen})

    assert state.feeds[0]["x"].flags.writeable


def sent(content: bytes, sha: str = "a" * 64, name: str = "folder/model.onnx") -> dict:
    """What `have` and `put` say of a file."""
    return {"sha256": sha, "name": name, "size": len(content), "file_sha256": hashlib.sha256(content).hexdigest()}


def put(state, content: bytes, begin: int = 0, end: int | None = None, **fields):
    chunk = np.frombuffer(content[begin:end], np.uint8)
    return ask(state, "put", {"chunk": chunk}, offset=begin, **{**sent(content), **fields})[0]


def test_an_artifact_travels_in_chunks_and_appears_when_it_is_whole(state):
    """`have` tells how much is here; half of it is no file yet, other bytes are not it, the whole is."""
    content = os.urandom(1000)
    path = state.cache / ("a" * 64) / "folder" / "model.onnx"
    answers = [ask(state, "have", **sent(content))[0]]
    assert put(state, content, 0, 400)["offset"] == 400
    answers.append(ask(state, "have", **sent(content))[0])
    assert not path.exists()
    assert put(state, content, 400)["ok"]
    answers.append(ask(state, "have", **sent(content))[0])
    assert content == path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    answers.append(ask(state, "have", **sent(content))[0])

    assert [(answer["have"], answer["offset"]) for answer in answers] == [
        (False, 0), (False, 400), (True, 1000), (False, 0)
    ]  # fmt: skip
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_arrived_damaged_is_not_kept(state):
    """Neither under its name nor as something to go on with."""
    content = os.urandom(100)
    put(state, content, 0, 50)
    wrong = ask(state, "put", {"chunk": np.zeros(50, np.uint8)}, offset=50, **sent(content))[0]

    assert "arrived damaged" in wrong["message"]
    assert ask(state, "have", **sent(content))[0] == {"ok": True, "have": False, "offset": 0}
    assert [path for path in state.cache.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("begin", "end"), [(60, 100), (-1, 10), (0, 101), (10**15, None)])
def test_chunks_that_do_not_follow_each_other_are_refused(state, begin, end):
    """A gap, a place before the beginning, more than was announced, a place far outside: no byte of it is written."""
    content = bytes(200)
    put(state, content[:100], 0, 50)
    chunk = np.zeros(len(content[max(begin, 0) : end]), np.uint8)
    reply = ask(state, "put", {"chunk": chunk}, offset=begin, **sent(content[:100]))[0]

    assert not reply["ok"]
    assert sum(path.stat().st_size for path in state.cache.rglob("*.part")) in (0, 50)


def test_a_shorter_file_replaces_a_longer_one(state):
    """What an interrupted transfer left does not stay at the end."""
    put(state, b"x" * 100, 0, 90)
    put(state, b"y" * 10)

    assert (state.cache / ("a" * 64) / "folder" / "model.onnx").read_bytes() == b"y" * 10


def test_a_link_that_leads_out_of_the_cache_is_not_followed(state, tmp_path):
    """Whoever made it: neither by put nor by load."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    place = state.cache / ("a" * 64)
    place.mkdir(parents=True)
    (place / "model.onnx").symlink_to(outside)
    (place / "folder").symlink_to(tmp_path)
    replies = [
        put(state, b"theirs", name="model.onnx"), put(state, b"theirs", name="folder/outside"),
        ask(state, "load", backend="fake", threads=1, batch=1, sha256="a" * 64, name="model.onnx")[0],
    ]  # fmt: skip

    assert ["not a plain relative path" in reply["message"] for reply in replies] == [True] * 3
    assert outside.read_bytes() == b"mine"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("sha", "name"),
    [
        ("a" * 64, "../escape"), ("a" * 64, "/etc/passwd"), ("a" * 64, "x/../../y"), ("a" * 64, ""), ("a" * 64, "."),
        ("a" * 64, "nul\0byte"), ("../" * 21 + "x", "m"), ("a" * 63, "m"), ("", "m"), ("a" * 63 + "/", "m"),
        ("A" * 64, "m"), ("\u0661" * 64, "m"), ("a" * 64 + "\n", "m"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["put", "have", "load"])
def test_names_that_leave_the_cache_are_refused(state, tmp_path, command, sha, name):
    """By put, by have and by load; nothing is written anywhere."""
    reply, _ = ask(
        state, command, {"chunk": np.zeros(3, np.uint8)}, sha256=sha, name=name, offset=0, size=3, file_sha256="0" * 64,
        backend="fake", threads=1, batch=1,
    )  # fmt: skip

    assert not reply["ok"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_timing_leaves_the_collector_as_it_was(state, artifact):
    """Off inside a block, on again after it."""
    import gc

    load(state, artifact)
    ask(state, "feed", {"0/x": np.zeros((1, 4), "f4")})
    reply, arrays = ask(state, "time", min_s=0, min_samples=5, max_s=1.0)

    assert gc.isenabled()
    assert reply["ok"]
    assert len(arrays["durations_ns"]) == 5


def frame(header, arrays=None) -> bytes:
    import io

    stream = io.BytesIO()
    wire.write_frame(stream, header, arrays)
    return stream.getvalue()


def start(**environment: str) -> subprocess.Popen[bytes]:
    target = local()
    return subprocess.Popen(
        target.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **target.environment, **environment},
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize(
    "rest", [b"", b"\0\0", struct.pack(">I", 50) + b"{", b"\xff" * 50], ids=["clean", "prefix", "half", "garbage"]
)
def test_the_worker_ends_when_its_stdin_does(rest):
    """Cleanly between frames; inside one, or after garbage, with an error. It never waits."""
    process = start()
    out, err = process.communicate(frame({"command": "hello"}) + rest, timeout=30)

    import io

    assert wire.read_frame(io.BytesIO(out))[0]["ok"]
    assert (process.returncode == 0) == (rest == b"")
    assert (b"WireError" in err) == (rest != b"")


@pytest.mark.process
def test_stop_ends_the_worker():
    """It answers first."""
    process = start()
    out, _ = process.communicate(frame({"command": "stop"}) + frame({"command": "hello"}), timeout=30)

    assert process.returncode == 0
    assert out.count(b'"ok"') == 1


CHATTY = """
import os, sys, ctypes
from backends import registry
from backends.fake import FakeBackend, FakeSession
libc = ctypes.CDLL(None)
class Chatty(FakeBackend):
    def load(self, artifact, options):
        print("python says load"); os.write(1, b"fd one says load\\n"); libc.puts(b"C says load"); libc.fflush(None)
        os.system("echo a child says load")
        session = super().load(artifact, options)
        inner = session.infer
        def infer(feeds):
            os.write(1, b"noise " * 3000 + b"\\n"); sys.stdout.write("more noise\\n")
            assert os.read(0, 10) == b""
            return inner(feeds)
        session.infer = infer
        return session
sys.modules["chatty"] = sys.modules["__main__"]
registry.BUILT_IN["fake"] = "chatty:Chatty"
from profiler.worker import main
main()
"""


@pytest.mark.process
def test_native_chatter_cannot_corrupt_the_protocol(artifact):
    """Python, C, descriptor 1 and child processes may print, and read stdin: answers arrive whole, the noise is in the log."""
    base = local()
    with WorkerProcess(Target("chatty", (sys.executable, "-c", CHATTY), True, base.environment)) as process:
        process.request("load", backend="fake", path=str(artifact), threads=1, batch=1, timeout_s=20)
        log = process.log_tail()
        process.request("feed", {"0/x": np.zeros((1, 4), "f4")}, timeout_s=5)
        _, arrays = process.request("time", min_s=0, min_samples=20, max_s=5.0, timeout_s=10)
        _, outputs = process.request("infer", {"x": np.zeros((1, 4), "f4")}, timeout_s=5)

    assert all(who in log for who in ("python says", "fd one says", "C says", "a child says"))
    assert len(arrays["durations_ns"]) == 20
    assert outputs["y"].shape == (1, 2)


TEXTUAL = """
import sys
import numpy as np
from backends import registry
from backends.fake import FakeBackend
class Textual(FakeBackend):
    def load(self, artifact, options):
        session = super().load(artifact, options)
        words = {"label": np.array(["cat"], object), "maps": [{"cat": 0.75, "dog": 0.25}]}
        session.infer = lambda feeds: {"label": np.zeros(1, "c8")} if feeds["x"].any() else words
        session.facts = {"not": "facts"} if "bad" in str(artifact) else session.facts
        return session
sys.modules["textual"] = sys.modules["__main__"]
registry.BUILT_IN["fake"] = "textual:Textual"
from profiler.worker import main
main()
"""


@pytest.mark.process
def test_an_answer_that_cannot_travel_is_a_failure_and_not_the_end(artifact):
    """Text and maps travel; of complex numbers the message says which output has them, and the worker lives on."""
    base = local()
    with WorkerProcess(Target("textual", (sys.executable, "-c", TEXTUAL), True, base.environment)) as process:
        process.request("load", backend="fake", path=str(artifact), threads=1, batch=1, timeout_s=20)
        _, outputs = process.request("infer", {"x": np.zeros((1, 4), "f4")}, timeout_s=5)
        with pytest.raises(WorkerFailure, match="'label' has dtype complex64") as caught:
            process.request("infer", {"x": np.ones((1, 4), "f4")}, timeout_s=5)
        hello, _ = process.request("hello", timeout_s=5)

    assert (outputs["label"].tolist(), outputs["maps"].tolist()) == (["cat"], [[0.75, 0.25]])
    assert caught.value.kind == "error"
    assert hello["ok"]


@pytest.mark.process
def test_an_artifact_is_sent_once(tmp_path):
    """Through the pipe in chunks, and not again when it is there: a second worker has it, a damaged one gets it again."""
    source = tmp_path / "source"
    source.mkdir()
    contents = {"model.onnx": os.urandom(9_000_000), "weights.bin": os.urandom(10), "empty": b""}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    files = {name: source / name for name in contents}
    cache, sha, puts = tmp_path / "cache", "c" * 64, []
    for damage in (False, False, True):
        if damage:
            (cache / sha / "weights.bin").write_bytes(b"0123456789")
        with WorkerProcess(local(), cache=cache) as process:
            real, sent = process.request, []

            def counted(command, *args, real=real, sent=sent, **fields):
                sent.append(command)
                return real(command, *args, **fields)

            process.request = counted
            process.send_artifact(sha, files, hashes, timeout_s=20)
            process.request("load", backend="fake", sha256=sha, name="model.onnx", threads=1, batch=1, timeout_s=20)
            puts.append(sent.count("put"))

    assert puts == [5, 0, 1]
    assert contents == {name: (cache / sha / name).read_bytes() for name in contents}


@pytest.mark.process
def test_the_worker_imports_little():
    """The standard library, numpy and psutil: nothing of the controller, no runtime."""
    code = """
        import sys
        import profiler.worker
        loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
        print(" ".join(sorted(loaded - set(sys.stdlib_module_names))))
        print(" ".join(sorted(name for name in sys.modules if name.startswith(("profiler", "backends", "device_profiles")))))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    top, own = (set(line.split()) for line in done.stdout.splitlines())
    hooks = {name for name in top if name.startswith(("_", "sitecustomize", "distutils"))}

    assert {"profiler", "backends", "numpy"} == top - {"psutil"} - hooks
    assert not {
        name
        for name in own
        if name.startswith("profiler.") and name.split(".")[1] not in {"_selfcheck", "wire", "worker", "measure"}
    }


@pytest.mark.process
@pytest.mark.runtime
def test_runtimes_report_to_nobody(tmp_path):
    """ONNX Runtime and OpenVINO leave no id in the home: what they do beside the inference is in the timings too."""
    code = "import profiler, onnxruntime, openvino; onnxruntime.SessionOptions(); openvino.Core()"
    keep = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=120, check=True,
        env={**keep, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")},
    )  # fmt: skip

    assert [path.name for path in tmp_path.rglob("*")] == []


def python310() -> str:
    """A Python 3.10 to make an environment with, or a skip that says what was looked for."""
    named = os.environ.get("EDGEPROF_PYTHON310")
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.10.*/bin/python3.10"))
    for candidate in filter(None, (named, *map(str, pyenv), shutil.which("python3.10"))):
        done = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.startswith("Python 3.10"):
            return candidate
    pytest.skip("no Python 3.10: set EDGEPROF_PYTHON310 to one")


@pytest.mark.process
@pytest.mark.runtime
def test_the_worker_runs_on_python_310_with_numpy_psutil_and_one_runtime(tmp_path, build_model, pytestconfig):
    """As on a device with JetPack 6: an artifact sent through the pipe is loaded, timed and answers what it answers here."""
    onnxruntime = pytest.importorskip("onnxruntime")
    # Made once and kept with pytest's cache: installing takes longer than everything else here.
    venv = pytestconfig.cache.mkdir("worker-python310") / "venv"
    if not (venv / "ready").exists():
        subprocess.run([python310(), "-m", "venv", "--clear", str(venv)], check=True, capture_output=True)
        pip = subprocess.run(
            [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "numpy", "psutil", "onnxruntime"],
            capture_output=True, text=True, check=False, timeout=280,
        )  # fmt: skip
        if pip.returncode:
            pytest.skip(f"the packages cannot be installed here: {pip.stderr.strip()[-200:]}")
        (venv / "ready").touch()
    model = build_model(tmp_path / "model.onnx")
    content = model.read_bytes()
    environment = {**local().environment, "PYTHONNOUSERSITE": "1"}
    target = Target("device", (str(venv / "bin" / "python"), *local().command[1:]), False, environment)
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    with WorkerProcess(target, cache=tmp_path / "cache") as process:
        hello, _ = process.request("hello", timeout_s=60)
        process.send_artifact(
            "e" * 64, {"model.onnx": model}, {"model.onnx": hashlib.sha256(content).hexdigest()}, timeout_s=20
        )
        process.request("load", backend="ort", sha256="e" * 64, name="model.onnx", threads=1, batch=3, timeout_s=60)
        process.request("feed", {"0/x": rows}, timeout_s=20)
        process.request("first", timeout_s=20)
        timing, arrays = process.request("time", min_s=0.0, min_samples=5, max_s=5.0, timeout_s=20)
        memory, _ = process.request("memory", timeout_s=20)
        facts, _ = process.request("facts", timeout_s=60)
        _, outputs = process.request("infer", {"x": rows}, timeout_s=20)
    expected = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"x": rows})[0]

    assert hello["python"].startswith("3.10")
    assert len(arrays["durations_ns"]) == 5
    assert timing["wall_s"] > 0
    assert memory["peak_rss_bytes"]
    assert facts["facts"]["provider"] == "CPUExecutionProvider"
    np.testing.assert_allclose(expected, outputs["y"], rtol=1e-4, atol=1e-5)


@pytest.fixture
def device(tmp_path):
    """A worker whose parent is another machine, with one model sent to it."""
    return worker.State(tmp_path / "cache", remote=True)


def given(state, content: bytes) -> dict:
    """Send `content` as the model; what `load` needs to name it."""
    assert put(state, content, name="model.onnx")["ok"]
    return {"sha256": "a" * 64, "name": "model.onnx", "threads": 1, "batch": 1}


def external(location: str) -> bytes:
    """An ONNX model whose weights lie in another file."""
    from onnx import TensorProto, helper

    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [4])],
        [helper.make_tensor_value_info("y", 1, [4])], [weights],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_a_device_loads_no_file_of_its_own(device, artifact):
    """A host may name what it sent, not what else lies there."""
    reply = ask(device, "load", backend="fake", path=str(artifact), threads=1, batch=1)[0]

    assert "loads only what was sent to it" in reply["message"]


@pytest.mark.parametrize(
    "location", ["../../secret", "/etc/passwd", "missing", "*/_ORT_MEM_ADDR_/*", "model.onnx/../../../x"]
)
@pytest.mark.parametrize("backend", ["ort", "ov", "trt", "injected"])
def test_a_device_loads_no_model_that_names_other_files(device, location, backend):
    """Its weights would be bytes of the device's files, and its answers would tell them: refused before any runtime reads it."""
    reply = ask(device, "load", backend=backend, **given(device, external(location)))[0]

    assert not reply["ok"]
    assert "external data" in reply["message"]


@pytest.mark.runtime
def test_a_device_loads_a_model_with_the_files_that_came_with_it(device):
    """External data beside the model are the usual case for large ones."""
    weights = np.arange(4, dtype=np.float32)
    assert put(device, weights.tobytes(), name="weights")["ok"]
    reply = ask(device, "load", backend="ort", **given(device, external("weights")))[0]
    outputs = ask(device, "infer", {"x": np.ones(4, np.float32)})[1]

    assert reply["ok"]
    np.testing.assert_array_equal(weights + 1, outputs["y"])


@pytest.mark.parametrize("content", [b"<net/>", b"", b"\x08", b"\x7fELF", b"not a model"])
def test_a_device_loads_nothing_that_is_no_onnx_model(device, content):
    """Other formats name files too, in ways that nobody here has read."""
    reply = ask(device, "load", backend="ov", **given(device, content))[0]

    assert "ONNX model" in reply["message"]


@pytest.mark.parametrize(
    "option",
    [
        {"custom_ops": "/tmp/evil.so"}, {"plugin": "/tmp/evil.so"}, {"plugins": "evil.xml"}, {"cache_dir": "/tmp"},
        {"profile": "/tmp/x"}, {"session.save_external_prepacked_constant_initializers": "1"}, {"config": "/etc/passwd"},
        {"trt_engine_cache_path": "/tmp"}, {"provider": "/tmp/libx.so"}, {"optimized_model_filepath": "/tmp/x"},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
@pytest.mark.parametrize("backend", ["ort", "ov", "trt", "fake"])
def test_no_option_loads_libraries_or_names_files(device, small_model, backend, option):
    """The adapters know all of their options by name, none of them is a path."""
    reply = ask(device, "load", backend=backend, options=option, **given(device, small_model.read_bytes()))[0]

    assert not reply["ok"]
    assert f"backend '{backend}' has no option '{next(iter(option))}'" in reply["message"]


@pytest.mark.parametrize(
    "chosen", [
        ("ort", "/tmp/libevil.so"), ("ort", "openvino"), ("ov", "AUTO:/x"), ("ov", "../CPU"), ("trt", "gpu.0;id"),
        ("trt", "/dev/x"),
    ]
)  # fmt: skip
def test_no_device_name_is_more_than_a_name(device, small_model, chosen):
    """What a host writes there is compared, not run or opened."""
    backend, name = chosen
    reply = ask(device, "load", backend=backend, device=name, **given(device, small_model.read_bytes()))[0]

    assert "has no device" in reply["message"]


def test_a_device_keeps_engines_in_its_own_cache(device, tmp_path):
    """Whatever folder the host names."""
    assert worker._engines(device, {"cache_dir": str(tmp_path / "elsewhere")}) == device.cache / "engines"


@pytest.mark.parametrize(("backend", "inner"), [("theirs", None), ("injected", "theirs")])
@pytest.mark.parametrize("command", ["load", "availability"])
def test_backends_of_others_run_on_a_device_when_its_owner_says_so(
    device, artifact, monkeypatch, command, backend, inner
):
    """Not when the host does: nothing of them is imported. On this machine they run as ever."""
    from backends import registry

    asked = []
    monkeypatch.setattr(registry, "get", lambda name: asked.append(name) or FakeBackend())
    fields = {"backend": backend, "device": inner, **given(device, b"x")}
    refused = ask(device, command, **fields)[0]
    before = list(asked)
    monkeypatch.setenv("EDGEPROF_WORKER_BACKENDS", "other,theirs")
    ask(device, command, **fields)
    monkeypatch.delenv("EDGEPROF_WORKER_BACKENDS")
    ask(worker.State(device.cache), command, **{**fields, "path": str(artifact)})

    assert (refused["kind"], before, asked) == ("unavailable", [], [backend] * 2)
    assert "EDGEPROF_WORKER_BACKENDS=theirs" in refused["message"]


@pytest.mark.parametrize("value", ["soon", float("inf"), float("nan"), -5, [], {}, None, True])
def test_times_that_are_none_are_not_believed(device, value):
    """A deadline or a wait that cannot be is none: the command is answered."""
    assert worker._seconds({"idle_s": value}, "idle_s") == (1.0 if value is True else 0.0)
    assert ask(device, "memory", deadline_s=value)[0]["ok"]


FAR = Target(
    "far", (sys.executable, "-c", "from profiler.worker import main; main(remote=True)"), False, local().environment
)


@pytest.mark.process
def test_a_device_forgets_a_host_that_says_nothing_more(tmp_path):
    """A link that died without a word leaves the pipe open: the worker ends by itself, at the time it was given."""
    import signal

    with WorkerProcess(FAR, cache=tmp_path / "cache") as process:
        process.greet(idle_s=0.2)
        process.request("memory", timeout_s=20)
        code = process._process.wait(30)

    assert code == -signal.SIGALRM


@pytest.mark.process
def test_a_device_does_not_forget_a_host_while_it_works(tmp_path):
    """Between commands only: an inference may take longer than the wait."""
    code = """
        import signal
        from profiler import worker
        worker._COMMANDS["timer"] = lambda *_: ({"left_s": signal.getitimer(signal.ITIMER_REAL)[0]}, {})
        worker.main(remote=True)
    """
    target = Target("far", (sys.executable, "-c", textwrap.dedent(code)), False, local().environment)
    with WorkerProcess(target, cache=tmp_path / "cache") as process:
        process.greet(idle_s=100)
        left, _ = process.request("timer", timeout_s=20)

    assert left["left_s"] == 0
