"""The cluster: what Dask does wrong by default does not happen, what comes from it is checked, and results are those of here.

Tests marked `process` use a real scheduler and real worker processes, which are really killed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import json
import os
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends.base import TensorInfo
from profiler import artifacts, evaluate, prepare, wire
from profiler.artifacts import ArtifactStore
from profiler.cluster import address, building, client, evaluating, tasks
from profiler.cluster.keys import ROLES, make_keys
from profiler.data import Dataset
from profiler.data.feeding import Feeding, InputRule
from profiler.errors import StudyError, TargetError, VariantError
from profiler.records import QualityRecord
from profiler.study import Case, make_study
from profiler.variants import registry

pytest.importorskip("distributed")
NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
LOOPBACK = "127.0.0.1:0"
PATIENCE_S = 60.0
"""How long a test waits for what has to come; no test depends on how fast it comes."""


def until(holds, what: str) -> Any:
    """Wait until `holds()` gives something."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {PATIENCE_S:g} s")


# ---------------------------------------------------------------- addresses


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography")
    folder = tmp_path / "keys"
    make_keys(folder, now=datetime.now(timezone.utc), days=2)
    return folder


def test_a_tls_address_needs_a_client_certificate(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(address.KEYS_VARIABLE, raising=False)
    with pytest.raises(StudyError, match="--cluster-keys or EDGEPROF_CLUSTER_KEYS"):
        address.settings("tls://build.example")
    assert address.settings("tls://build.example", keys) == address.Settings("tls://build.example:8786", keys)
    monkeypatch.setenv(address.KEYS_VARIABLE, str(keys))
    assert address.settings("tls://[::1]:99").address == "tls://[::1]:99"
    (keys / "client.pem").unlink()
    with pytest.raises(StudyError, match=r"has no client\.pem"):
        address.settings("tls://build.example")


def test_a_key_that_others_can_read_is_refused(keys: Path) -> None:
    (keys / "client.key").chmod(0o640)
    with pytest.raises(StudyError, match="chmod 600"):
        address.settings("tls://build.example", keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
def test_plain_tcp_is_accepted_on_loopback_when_it_is_said_so(host: str) -> None:
    with pytest.raises(StudyError, match="--cluster-insecure"):
        address.settings(f"tcp://{host}:8786")
    assert not address.settings(f"tcp://{host}:8786", insecure=True).encrypted


@pytest.mark.parametrize("host", ["build.example", "10.0.0.1", "0.0.0.0", "[fe80::1]", "localhost.evil.example"])
def test_plain_tcp_elsewhere_is_refused_whatever_is_said(host: str, keys: Path) -> None:
    with pytest.raises(StudyError, match="not encrypted"):
        address.settings(f"tcp://{host}:8786", keys, insecure=True)


@pytest.mark.parametrize(
    "text", ["build:8786", "tls://", "ws://build", "inproc://x", "tls://a:70000", "tls://a b", "tls://u@h", "tls://h/x"]
)
def test_what_is_no_address_is_refused(text: str, keys: Path) -> None:
    with pytest.raises(StudyError, match="cannot read --cluster"):
        address.settings(text, keys)


# ------------------------------------------------------------- certificates


def test_keys_are_private_and_certificates_say_what_they_are_for(tmp_path: Path) -> None:
    x509 = pytest.importorskip("cryptography").x509
    made = make_keys(tmp_path / "new" / "keys", now=NOW, days=10)
    assert len(made) == 8
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    read = {path.stem: x509.load_pem_x509_certificate(path.read_bytes()) for path in made if path.suffix == ".pem"}
    for role in ROLES:
        read[role].verify_directly_issued_by(read["ca"])
        assert not read[role].extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert read[role].not_valid_after_utc == NOW + timedelta(days=10)
    purposes = {role: set(read[role].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for role in ROLES}
    serves = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
    assert {role for role, found in purposes.items() if serves in found} == {"scheduler", "worker"}


def test_keys_that_are_there_are_never_replaced(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    make_keys(tmp_path, now=NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StudyError, match=r"ca\.pem, ca\.key"):
        make_keys(tmp_path, now=NOW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(StudyError, match="1 to 3650 days"):
        make_keys(tmp_path / "other", now=NOW, days=0)


@pytest.mark.parametrize(("server", "client_role", "accepted"), [
    ("scheduler", "client", True), ("scheduler", "worker", True), ("worker", "scheduler", True), ("client", "client", False),
])  # fmt: skip
def test_a_clients_certificate_cannot_serve(keys: Path, server: str, client_role: str, accepted: bool) -> None:
    """With the contexts that Dask makes of these files, strict as Python 3.13 is by default."""
    security = pytest.importorskip("distributed.security")

    def context(role: str, side: str) -> ssl.SSLContext:
        files = {f"tls_{side}_cert": str(keys / f"{role}.pem"), f"tls_{side}_key": str(keys / f"{role}.key")}
        made = security.Security(tls_ca_file=str(keys / "ca.pem"), require_encryption=True, **files)
        side_name = {"scheduler": "listen", "client": "connection"}[side]
        found = getattr(made, f"get_{side_name}_args")(side)["ssl_context"]
        found.verify_flags |= ssl.VERIFY_X509_STRICT
        return found

    ours, theirs = socket.socketpair()
    heard: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError), context(server, "scheduler").wrap_socket(theirs, server_side=True) as link:
            heard.append(link.recv(5))

    thread = threading.Thread(target=serve)
    thread.start()
    refused = ""
    try:
        with context(client_role, "client").wrap_socket(ours) as link:
            link.sendall(b"hello")
    except ssl.SSLError as error:
        refused = str(error)
    finally:
        ours.close()
        thread.join(PATIENCE_S)
    assert (heard == [b"hello"]) is accepted
    assert ("purpose" in refused) is not accepted


# ---------------------------------------------------- a unit, on the worker


def facts() -> dict[str, Any]:
    return json.loads(tasks.facts())


def asked(kind: str = "build", **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "fields": {}, "files": {}, "identity": tasks.identity(facts()), **fields}


def told(given: dict[str, Any], folder: Path) -> tuple[dict[str, Any], wire.Arrays]:
    frame = wire.read_frame(io.BytesIO(tasks.answer(given, folder, "tls://w")))
    assert frame is not None
    return frame


def test_a_unit_asks_for_the_files_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    there, other = "a" * 64, "b" * 64
    (tmp_path / there).write_bytes(b"xyz")
    header, _ = told(asked(files={there: 3, other: 3}), tmp_path)
    assert header["missing"] == [other]
    header, _ = told(asked(files={there: 4}), tmp_path)
    assert header["missing"] == [there]


def test_a_worker_with_another_version_does_not_do_the_work(tmp_path: Path) -> None:
    identity = {**tasks.identity(facts()), "onnx": "0.1"}
    header, _ = told(asked(identity=identity), tmp_path)
    assert header["not_here"].startswith("it has onnx ")
    assert "(here 0.1)" in header["not_here"]


def test_names_of_files_stay_below_their_folder() -> None:
    assert tasks.plain_name("sub/model.onnx.data") == "sub/model.onnx.data"
    for name in ("../x", "/etc/x", "a/../../x", "", "a\0b", "..\\x"):
        with pytest.raises(wire.WireError):
            tasks.plain_name(name)


def test_a_file_is_in_place_only_when_its_hash_is_right(tmp_path: Path) -> None:
    worker, data = SimpleNamespace(local_directory=str(tmp_path)), b"0123456789"
    sha256 = client.file_of_arrays(dict).sha256
    with pytest.raises(wire.WireError, match="did not arrive whole"):
        tasks.receive(sha256, 10, 0, data, "s", worker)
    path = tmp_path / "in"
    path.write_bytes(data)
    sha256 = client.file_of(path).sha256
    assert tasks.receive(sha256, 10, 0, data[:4], "s", worker) == "more"
    assert tasks.receive(sha256, 10, 4, data[4:], "s", worker) == "whole"
    assert [found.read_bytes() for found in (tmp_path / "edgeprof-files").iterdir()] == [data]
    for wrong in (("../x", 10, 0, data), (sha256, 5, 0, data), (sha256, 10, -1, data)):
        with pytest.raises(wire.WireError):
            tasks.receive(*wrong, "s", worker)


def test_old_files_are_removed_and_used_ones_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "edgeprof-files"
    folder.mkdir()
    for name in ("a" * 64, "b" * 64):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (0, 0))
    told(asked(files={"a" * 64: 1}), folder)
    tasks.facts(SimpleNamespace(local_directory=str(tmp_path)))
    assert [path.name for path in folder.iterdir()] == ["a" * 64]


def test_a_variant_that_reads_a_file_of_this_machine_is_not_made_there(tmp_path: Path, small_model: Path) -> None:
    recipe = registry.make(f"external{{path={str(small_model).replace('/', '%2F')}}}")
    fields = {
        "variant": recipe.text,
        "content": "another",
        "source": {},
        "calibration": None,
        "calibration_sha256": None,
    }
    header, _ = told(asked(fields=fields), tmp_path)
    assert "reads beside the model" in header["not_here"]


def test_accuracy_is_refused_on_another_processor_and_with_too_few_cores(tmp_path: Path) -> None:
    here = facts()
    cpu = {"machine": here["machine"], "isa": here["isa"]}
    fields: dict[str, Any] = {"cpu": {**cpu, "isa": ["avx9"]}, "load": {"threads": 1}}
    header, _ = told(asked("evaluate", fields=fields), tmp_path)
    assert "other instruction sets" in header["not_here"]
    fields = {"cpu": cpu, "load": {"threads": here["cores"] + 1}}
    header, _ = told(asked("evaluate", fields=fields), tmp_path)
    assert f"{here['cores']} cores for {here['cores'] + 1} threads" in header["not_here"]


# --------------------------------------------------- our side, without Dask


class FakeFuture:
    """Of `answer`: None means not yet, an exception is raised by whoever fetches it."""

    def __init__(self, answer) -> None:
        self.answer, self.found = answer, None

    def exception(self, timeout):
        self.found = self.answer()
        if self.found is None:
            raise TimeoutError
        return self.found if isinstance(self.found, Exception) else None

    def result(self, timeout):
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found

    def cancelled(self):
        return False

    def release(self):
        pass


class FakeDask:
    """The part of a `distributed.Client` that is used, with answers from a function; None means: not yet."""

    def __init__(self, answer=lambda asked: None, workers=("tls://w",)) -> None:
        self.answer, self.workers = answer, list(workers)
        self.asked: list[dict[str, Any]] = []
        self.options: list[dict[str, Any]] = []
        self.events: list[tuple[float, dict[str, str]]] = []
        self.restarted: list[str] = []
        self.delivered: list[tuple[Any, ...]] = []
        self.closed = False

    def submit(self, function, text, **options):
        assert function is tasks.unit
        self.asked.append(json.loads(text))
        self.options.append(options)
        return FakeFuture(lambda: self.answer(self.asked[-1]))

    def begin(self, asked) -> None:
        self.events.append((0.0, {"key": asked["key"], "worker": "tls://w"}))

    def nthreads(self):
        return dict.fromkeys(self.workers, 1)

    def get_events(self, topic):
        return tuple(self.events)

    def run(self, function, *arguments, workers, on_error):
        if function is tasks.end:
            self.restarted += workers
            return {}
        self.delivered.append(arguments)
        _, size, offset, chunk, _ = arguments
        return {workers[0]: "more" if offset + len(chunk) < size else "whole"}

    def close(self, timeout):
        self.closed = True


class Clock:
    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def frame(header: dict[str, Any], arrays: wire.Arrays | None = None) -> bytes:
    buffer = io.BytesIO()
    wire.write_frame(buffer, {"worker": "tls://w", "facts": facts(), **header}, arrays)
    return buffer.getvalue()


def cluster_of(dask: FakeDask, **options: Any) -> client.Cluster:
    machine = client.machine(facts())
    return client.Cluster(dask, dict.fromkeys(dask.workers, machine), clock=Clock(), look_s=0.0, **options)


def test_nothing_is_pinned_or_retried_by_dask() -> None:
    dask = FakeDask(lambda _: frame({"done": {}}))
    with cluster_of(dask) as cluster:
        cluster.do("build", {}, [], limit_s=1)
        cluster.do("build", {}, [], limit_s=1)
    assert dask.closed
    assert {key for options in dask.options for key in options} == {"key", "pure", "retries"}
    assert all(options["pure"] is False and options["retries"] == 0 for options in dask.options)
    assert len({options["key"] for options in dask.options}) == 2


def test_a_cluster_that_loses_its_last_worker_is_given_up_with_words() -> None:
    dask = FakeDask()
    dask.workers.clear()
    with pytest.raises(client.ClusterLost, match="it had no worker for 50 s"):
        cluster_of(dask, patience_s=50).do("build", {}, [], limit_s=1e6)


def test_work_that_nobody_takes_is_given_up_with_words() -> None:
    with pytest.raises(client.ClusterLost, match="nobody took the work within 80 s"):
        cluster_of(FakeDask(), patience_s=50).do("build", {}, [], limit_s=30)


def test_work_that_does_not_end_has_its_worker_started_anew() -> None:
    dask = FakeDask()
    dask.answer = dask.begin  # begins, and never ends
    with pytest.raises(client.TookTooLong, match="30 s"):
        cluster_of(dask).do("build", {}, [], limit_s=30)
    assert until(lambda: dask.restarted, "the end of the worker") == ["tls://w"]


def test_leaving_ends_all_waits() -> None:
    dask = FakeDask()
    cluster = cluster_of(dask, patience_s=1e12)
    found: list[Exception] = []

    def wait() -> None:
        try:
            cluster.do("build", {}, [], limit_s=1e12)
        except client.ClusterLost as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: dask.asked, "the unit")
    cluster.close()
    thread.join(PATIENCE_S)
    assert len(found) == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError, concurrent.futures.CancelledError, TimeoutError])
def test_a_fetch_that_ended_with_another_one_is_made_again(error, monkeypatch) -> None:
    """Dask fetches results together: one that is given up ends the others, whose units are done all the same."""
    dask, ends = FakeDask(lambda _: frame({"done": {"n": 1}})), [error()]
    fetched = FakeFuture.result

    def result(future, timeout):
        if ends:
            raise ends.pop()
        return fetched(future, timeout)

    monkeypatch.setattr(FakeFuture, "result", result)
    assert cluster_of(dask).do("build", {}, [], limit_s=1e6).done == {"n": 1}
    assert len(dask.asked) == 1


def test_a_unit_that_was_cancelled_itself_is_lost(monkeypatch) -> None:
    monkeypatch.setattr(FakeFuture, "result", lambda *_, **__: (_ for _ in ()).throw(asyncio.CancelledError()))
    monkeypatch.setattr(FakeFuture, "cancelled", lambda _: True)
    with pytest.raises(client.ClusterLost, match="the cluster is gone"):
        cluster_of(FakeDask(lambda _: frame({"done": {}}))).do("build", {}, [], limit_s=1e6)


def test_a_large_result_over_a_slow_link_has_time_to_come(monkeypatch) -> None:
    """The short looks are for units that still run."""
    limits = []
    fetched = FakeFuture.result

    def result(future, timeout):
        limits.append(timeout)
        return fetched(future, timeout)

    monkeypatch.setattr(FakeFuture, "result", result)
    cluster_of(FakeDask(lambda _: frame({"done": {}})), patience_s=50).do("build", {}, [], limit_s=1e6)
    assert limits == [50]


def test_a_unit_that_nobody_wants_any_more_is_let_go() -> None:
    dask = FakeDask()
    answers = iter([False, False, False, True])
    with pytest.raises(client.LetGo):
        cluster_of(dask, patience_s=1e12).do("build", {}, [], limit_s=1e12, unwanted=lambda: next(answers))
    assert len(dask.asked) == 1
    assert dask.restarted == []


def test_missing_files_are_brought_in_pieces_and_the_unit_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CHUNK_BYTES", 4)
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    file, other = client.file_of(path), client.file_of_arrays(lambda: {"x": np.zeros(2)})
    answers = deque([frame({"missing": [file.sha256]}), frame({"done": {"n": 1}})])
    dask = FakeDask(lambda _: answers.popleft())
    answer = cluster_of(dask).do("build", {}, [file, other], limit_s=1)
    assert answer.done == {"n": 1}
    assert [(piece[2], piece[3]) for piece in dask.delivered] == [(0, b"0123"), (4, b"4567"), (8, b"89")]
    assert {piece[0] for piece in dask.delivered} == {file.sha256}
    assert len({asked["key"] for asked in dask.asked}) == 2


def test_a_worker_that_asks_for_files_for_ever_is_given_up(tmp_path: Path) -> None:
    dask = FakeDask(lambda _: frame({"missing": ["a" * 64]}))
    with pytest.raises(client.ClusterLost, match="again and again"):
        cluster_of(dask).do("build", {}, [], limit_s=1)


@pytest.mark.parametrize("raw", [
    b"", b"\xff\xff\xff\xff", "text", None, 3,
    frame({}), frame({"done": {}, "not_here": "x"}), frame({"done": 3}), frame({"failed": "x"}),
    frame({"done": {}, "facts": None}), frame({"done": {}, "facts": {"isa": "avx"}}),
    frame({"done": {}, "facts": {**facts(), "cores": "many"}}), frame({"done": {}, "facts": {**facts(), "packages": 3}}),
])  # fmt: skip
def test_answers_that_no_worker_of_ours_gives_end_the_use_of_the_cluster(raw: Any) -> None:
    dask = FakeDask()
    dask.submit = lambda *_, **__: FakeFuture(lambda: raw)  # type: ignore[method-assign]
    with pytest.raises(client.ClusterLost):
        cluster_of(dask).do("build", {}, [], limit_s=1)


def test_texts_of_workers_cannot_move_the_cursor() -> None:
    given = {**facts(), "host": "\x1b[2Jhost\u202e", "cpu": "x\ny" * 200}
    found = client.machine(given)
    assert found.host == "?[2Jhost?"
    assert len(found.cpu) == 100
    assert "\n" not in found.cpu


def test_another_edgeprof_or_package_is_refused_with_words() -> None:
    here = facts()
    client.same_as_here("w", json.dumps(here))
    other = {**here, "edgeprof": "edgeprof-0", "packages": {**here["packages"], "onnxruntime": None}}
    with pytest.raises(
        TargetError, match=r"edgeprof edgeprof-0 \(here .*onnxruntime missing \(here .*Install the same"
    ):
        client.same_as_here("w", json.dumps(other))
    with pytest.raises(TargetError, match=r"has no edgeprof like this one .ModuleNotFoundError"):
        client.same_as_here("w", ModuleNotFoundError("No module named 'profiler'"))
    for text in ("", "[]", "{}", "[" * 100_000):
        with pytest.raises(TargetError, match="does not say what it is"):
            client.same_as_here("w", text)


# ------------------------------------------- what comes back, without Dask


class FakeCluster:
    """Gives prepared answers."""

    slots = 2

    def __init__(self, give) -> None:
        self.give, self.here = give, client.machine(facts())
        self.machines = {"tls://w": self.here}
        self.asked: list[dict[str, Any]] = []

    def do(self, kind, fields, files, *, limit_s, unwanted):
        self.asked.append(dict(fields))
        found = self.give(fields)
        if isinstance(found, Exception):
            raise found
        return found


def answer(machine: client.Machine | None = None, **fields: Any) -> client.Answer:
    empty = {"done": None, "not_here": None, "failed": None, "arrays": {}, "begun": 1}
    return client.Answer(machine=machine or client.machine(facts()), **{**empty, **fields})


def made_there(
    small_model: Path, folder: Path, text: str = "prune-magnitude{sparsity=0.5}"
) -> tuple[dict[str, Any], wire.Arrays]:
    """What a worker answers for a variant."""
    store = ArtifactStore(folder)
    record = store.make(small_model, registry.make(text), None, None)
    body = {**artifacts.dataclasses.asdict(record), "facts": dict(record.facts), "notes": list(record.notes)}
    return body, {name: np.frombuffer(path.read_bytes(), np.uint8) for name, path in store.files(record.sha256).items()}


PRUNED = "prune-magnitude{sparsity=0.5}"


def test_what_the_cluster_made_is_stored_as_if_it_were_made_here(small_model: Path, tmp_path: Path) -> None:
    body, arrays = made_there(small_model, tmp_path / "there")
    far = replace(client.machine(facts()), host="far", isa=("avx9",))
    cluster = FakeCluster(lambda _: answer(far, done={"record": body}, arrays=arrays, begun=2))
    notes: list[str] = []
    store = building.ClusterArtifacts(tmp_path / "here", cluster, notes.append)
    variant = registry.make(PRUNED)
    assert list(store.ahead(small_model, [registry.make("fp32"), variant], None, None)) == [PRUNED]
    record = store.make(small_model, variant, None, None)
    assert (record.sha256, record.facts, record.changed) == (body["sha256"], body["facts"], True)
    assert store.verify(record.sha256)
    assert "made on the cluster machine far" in record.notes[-3]
    assert "other instruction sets" in record.notes[-2]
    assert "counted once" in record.notes[-1]
    # In the cache now, also for a store without a cluster; and the reference never went there.
    assert ArtifactStore(tmp_path / "here").make(small_model, variant, None, None) == record
    store.make(small_model, registry.make("fp32"), None, None)
    assert [fields["variant"] for fields in cluster.asked] == [PRUNED]
    assert notes == []


def wrong_bytes(body, arrays):
    return body, {**arrays, "model.onnx": arrays["model.onnx"][:-1]}


def wrong_hash(body, arrays):
    return {**body, "sha256": "0" * 64}, arrays


def outside(body, arrays):
    return body, {**arrays, "../escaped": arrays["model.onnx"]}


def other_variant(body, arrays):
    return {**body, "variant": "fp16"}, arrays


def no_facts(body, arrays):
    return {**body, "facts": {"a": []}}, arrays


def no_model(body, arrays):
    return body, {"other": arrays["model.onnx"]}


def not_onnx(body, arrays):
    """Bytes of the right hash, which no one can read."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(b"\x08\x07\xff")
        sha256 = artifacts.content_sha256(Path(folder))
    return {**body, "sha256": sha256}, {"model.onnx": np.frombuffer(b"\x08\x07\xff", np.uint8)}


@pytest.mark.parametrize("spoil", [wrong_bytes, wrong_hash, outside, other_variant, no_facts, no_model, not_onnx])
def test_what_is_not_what_it_says_is_made_here_instead(spoil, small_model: Path, tmp_path: Path) -> None:
    body, arrays = made_there(small_model, tmp_path / "there")
    right = body["sha256"]
    bad, bad_arrays = spoil(body, arrays)
    cluster = FakeCluster(lambda _: answer(done={"record": bad}, arrays=bad_arrays))
    notes: list[str] = []
    store = building.ClusterArtifacts(tmp_path / "here", cluster, notes.append)
    record = store.make(small_model, registry.make(PRUNED), None, None)
    assert record.sha256 == right
    assert not any("cluster" in note for note in record.notes)
    assert len(notes) == 1
    assert "made here, not on the cluster" in notes[0]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("death", [client.WorkerDied("the worker died"), client.TookTooLong("it took too long")])
def test_what_killed_a_worker_is_a_failure_after_once_and_is_not_tried_here(
    death, small_model: Path, tmp_path: Path, listener, fake_study
) -> None:
    cluster = FakeCluster(lambda fields: death if fields["variant"] == PRUNED else answer(not_here="no"))
    store = building.ClusterArtifacts(tmp_path / "cache", cluster, lambda _: None)
    study = fake_study(variants=("int8-dynamic", PRUNED))
    variants = prepare.check_names(study)
    prepared = prepare.prepare(study, variants, tmp_path)
    assert len(list(store.ahead(prepared.source, variants, None, None))) == 2
    made, failures = prepare.make_artifacts(prepared, variants, store, listener())
    assert [record.variant for record in made] == ["fp32", "int8-dynamic"]
    assert [(failure.case, failure.stage) for failure in failures] == [(PRUNED, "variant")]
    assert "not tried again" in failures[0].message
    assert [fields["variant"] for fields in cluster.asked].count(PRUNED) == 1


def test_what_is_not_there_in_time_is_let_go_and_asked_for_again(small_model: Path, tmp_path: Path) -> None:
    texts = [f"prune-magnitude{{sparsity={share}}}" for share in ("0.3", "0.5", "0.7", "0.8")]
    made = {text: made_there(small_model, tmp_path / "there", text) for text in texts}

    class Slow(FakeCluster):
        def do(self, kind, fields, files, *, limit_s, unwanted):
            if fields["variant"] != texts[0] and not late:
                until(unwanted, "the end of the time")
                raise client.LetGo("let go")
            return super().do(kind, fields, files, limit_s=limit_s, unwanted=unwanted)

    cluster: Any = Slow(
        lambda fields: answer(done={"record": made[fields["variant"]][0]}, arrays=made[fields["variant"]][1])
    )
    late: list[bool] = []
    notes: list[str] = []
    store = building.ClusterArtifacts(tmp_path / "here", cluster, notes.append)
    variants = [registry.make(text) for text in texts]
    # The clock jumps over the limit once the first is there.
    clock = lambda: 0.0 if not cluster.asked else 1e9  # noqa: E731
    settled = list(store.ahead(small_model, variants, None, None, limit_s=PATIENCE_S, clock=clock))
    assert set(settled) <= {texts[0]}
    assert [fields["variant"] for fields in cluster.asked] == texts[:1]
    late.append(True)
    for variant in variants:
        assert store.make(small_model, variant, None, None).sha256 == made[variant.text][0]["sha256"]
    assert [fields["variant"] for fields in cluster.asked] == texts
    assert notes == []


def test_when_the_cluster_is_gone_the_rest_is_made_here_and_told_once(small_model: Path, tmp_path: Path) -> None:
    cluster = FakeCluster(lambda _: client.ClusterLost("it had no worker for 9 s"))
    notes: list[str] = []
    store = building.ClusterArtifacts(tmp_path, cluster, notes.append)
    variants = [registry.make(f"prune-magnitude{{sparsity={share}}}") for share in ("0.3", "0.5", "0.7")]
    list(store.ahead(small_model, variants, None, None))
    assert len({store.make(small_model, variant, None, None).sha256 for variant in variants}) == 3
    assert notes == ["what is missing is made here, not on the cluster: it had no worker for 9 s"]


def test_a_failure_there_has_the_words_of_here(small_model: Path, tmp_path: Path) -> None:
    words = "int8-static needs calibration rows.\x1b[0m"
    cluster = FakeCluster(lambda _: answer(failed={"type": "VariantError", "text": words, "for_people": True}))
    store = building.ClusterArtifacts(tmp_path, cluster, lambda _: None)
    with pytest.raises(VariantError, match=r"int8-static needs calibration rows\.\?\[0m"):
        store.make(small_model, registry.make(PRUNED), None, None)


# ----------------------------------------------------------- who may evaluate


def job_of(plan: dict[str, Any] | None = None, **fields: Any) -> Any:
    prepared = SimpleNamespace(feeding=Feeding.plain([TensorInfo("x", "float32", ("N", 4))]))
    fields = {"prepared": prepared, **fields}
    return SimpleNamespace(run_id="r", store=SimpleNamespace(plan=lambda _: plan or {}), **fields)


def case(target: str = "local", backend: str = "ort", variant: str = "fp32", batch: int = 1) -> Case:
    return Case(variant, backend, target, batch, 1)


def place(**fields: Any) -> dict[str, Any]:
    here = facts()
    environment = {
        "cpu_model": here["cpu"], "machine": here["machine"], "cpu_isa": here["isa"], "usable_cores": 4,
        "versions": here["packages"], **fields,
    }  # fmt: skip
    return {"targets": {"board": {"environment": environment}}}


def test_a_case_is_evaluated_on_the_cluster_only_when_the_target_would_give_the_same() -> None:
    cluster: Any = FakeCluster(lambda _: None)
    assert evaluating.not_there(job_of(), case(), cluster) is None
    assert evaluating.not_there(job_of(), case(backend="ov:CPU{precision=bf16}"), cluster) is None
    assert evaluating.not_there(job_of(place()), case("board"), cluster) is None
    for backend in ("ort:cuda", "ov:GPU", "trt", "of-a-stranger"):
        assert "every CPU" in str(evaluating.not_there(job_of(), case(backend=backend), cluster))
    for target in ("local{cpus=1}", "board"):
        assert "conditions" in str(evaluating.not_there(job_of(), case(target), cluster))
    other = place(cpu_isa=["neon"], machine="aarch64")
    assert "other instruction sets" in str(evaluating.not_there(job_of(other), case("board"), cluster))
    unknown = place(cpu_isa=[])
    assert "other instruction sets" in str(evaluating.not_there(job_of(unknown), case("board"), cluster))
    own = place(versions={**facts()["packages"], "onnxruntime": "1.0"})
    assert "another onnxruntime" in str(evaluating.not_there(job_of(own), case("board"), cluster))
    # One machine of another kind is enough: nothing is pinned, so any may take it.
    cluster.machines["tls://x"] = replace(cluster.here, host="old", isa=cluster.here.isa[:1])
    assert "the cluster's old" in str(evaluating.not_there(job_of(), case(), cluster))


def test_inputs_that_are_not_rows_first_are_fed_on_the_target() -> None:
    """A cluster cuts its portions on the first axis."""
    cluster: Any = FakeCluster(lambda _: None)
    inner = Feeding((InputRule(TensorInfo("h", "float32", (2, "N", 4)), axis=1),))
    job = job_of(prepared=SimpleNamespace(feeding=inner))

    assert "first axis" in str(evaluating.not_there(job, case(), cluster))


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize(("rows", "parts", "row_bytes"), [(1, 1, 1), (1000, 3, 1), (100_000, 4, 1), (5000, 2, 1 << 22)])
def test_portions_are_whole_batches_and_hold_every_row_once(batch: int, rows: int, parts: int, row_bytes: int) -> None:
    found = evaluating.portions(rows, batch, parts, row_bytes)
    assert [row for start, stop in found for row in range(start, stop)] == list(range(rows))
    assert all((stop - start) % batch == 0 for start, stop in found[:-1])
    most = min(evaluating.MOST_ROWS, max(1, evaluating.PORTION_BYTES // row_bytes))
    assert all(stop - start <= most + batch - 1 for start, stop in found)


class Rows:
    """A job with the artifact files that a fake cluster never reads, and a target that answers the row itself."""

    limit_s = 30.0

    def __init__(self, tmp_path: Path, data: Dataset, listener) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(b"m")
        self.run_id, self.folder, self.progress = "r", tmp_path, listener()
        self.study = make_study(model="m")
        feeding = Feeding.plain([TensorInfo(name, "float32", ("N", *a.shape[1:])) for name, a in data.inputs.items()])
        self.prepared = SimpleNamespace(evaluation=data, rows=data.inputs, feeding=feeding)
        self.budget = SimpleNamespace(left_s=float("inf"))
        self.artifact_store = SimpleNamespace(files=lambda _: {"model.onnx": path})
        self.artifacts = {name: SimpleNamespace(sha256=name, facts={}) for name in ("fp32", "fp16", "graph")}
        self.found: list[Any] = []
        self.opened: list[str] = []
        self.store = SimpleNamespace(
            records=lambda _, kind: tuple(record for record in self.found if isinstance(record, kind)),
            add=lambda _, record: self.found.append(record),
            plan=lambda _: {},
        )

    @contextlib.contextmanager
    def open(self, case):
        self.opened.append(case.quality_key)
        yield SimpleNamespace(request=lambda _, feeds, timeout_s: ({}, {"y": one_hot(feeds["x"])}))

    def load(self, worker, case):
        return {}

    def fail(self, key, stage, failure, replicate=None):
        raise failure


def one_hot(x):
    return np.eye(4, dtype=np.float32)[x[:, 0].astype(int) % 4]


@pytest.fixture
def rows(tmp_path: Path, listener):
    def make(count: int = 700, name: str = "r") -> Any:
        x = np.arange(count, dtype=np.float32)[:, None]
        folder = tmp_path / name
        folder.mkdir()
        return Rows(folder, Dataset.of("d", {"x": x}, np.arange(count) % 4), listener)

    return make


def evaluating_cluster(job: Any, spoil=None) -> FakeCluster:
    """A cluster that does what a worker does with the portion's rows."""
    data = job.prepared.evaluation
    sent: dict[str, np.ndarray] = {}

    class Cluster(FakeCluster):
        def do(self, kind, fields, files, *, limit_s, unwanted):
            frame = wire.read_frame(files[-1].open())
            sent[fields["rows"]] = frame[1]["x"]
            return super().do(kind, fields, files, limit_s=limit_s, unwanted=unwanted)

    def give(fields):
        found = {"y": one_hot(sent[fields["rows"]])}
        assert len(found["y"]) % fields["load"]["batch"] == 0
        return answer(done={}, arrays=found) if spoil is None else spoil(fields, found)

    assert data is not None
    return Cluster(give)


def test_portions_from_the_cluster_make_the_same_records(rows) -> None:
    cases = [case(variant=variant, batch=32) for variant in ("fp32", "fp16", "graph")]
    there, here = rows(name="there"), rows(name="here")
    evaluate.evaluate(here, cases)
    cluster: Any = evaluating_cluster(there)
    evaluate.evaluate(there, cases, evaluating.ClusterEvaluation(cluster))
    assert there.opened == []
    assert len(here.opened) == 3
    for ours, theirs in zip(there.found, here.found, strict=True):
        assert ours.case == theirs.case
        np.testing.assert_array_equal(ours.per_sample, theirs.per_sample)
        np.testing.assert_array_equal(ours.agreement, theirs.agreement)
        assert "evaluated on the cluster" in ours.notes[-1]


def gone(fields, found):
    return client.ClusterLost("gone")


def died(fields, found):
    return client.WorkerDied("the worker w died")


def crashed(fields, found):
    return answer(failed={"type": "crash", "text": "ended by SIGSEGV"})


def elsewhere(fields, found):
    return answer(not_here="other instruction sets")


def too_few(fields, found):
    return answer(done={}, arrays={"y": found["y"][:-1]})


def nothing(fields, found):
    return answer(done={}, arrays={})


@pytest.mark.parametrize("spoil", [gone, died, crashed, elsewhere, too_few, nothing])
def test_what_fails_on_the_cluster_is_evaluated_on_the_target(spoil, rows) -> None:
    """A failure counts only where the case is meant to run."""
    job = rows()
    cluster: Any = evaluating_cluster(job, spoil)
    failed = evaluate.evaluate(job, [case(), case(variant="fp16")], evaluating.ClusterEvaluation(cluster))
    assert failed == set()
    assert job.opened == ["fp32@ort/b1", "fp16@ort/b1"]
    assert [record.notes for record in job.found] == [(), ()]
    assert any("evaluated on its target, not on the cluster" in note for note in job.progress.notes)


def test_few_evaluations_are_under_way_at_a_time(rows) -> None:
    job = rows(300)
    names = [f"v{number}" for number in range(20)]
    job.artifacts = {name: SimpleNamespace(sha256=name, facts={}) for name in names}
    cluster: Any = evaluating_cluster(job)
    cases = [case(variant=name) for name in names]
    with evaluating.ClusterEvaluation(cluster).ahead(job, cases, job.prepared.evaluation) as ahead:
        for number, one in enumerate(cases):
            assert len(cluster.asked) <= number + cluster.slots + 1
            assert ahead.outputs(one) is not None
        assert ahead.outputs(cases[0]) is None


def test_screening_on_the_cluster_counts_the_rows_that_screening_needs(rows) -> None:
    from profiler.search.screening import Screening

    def stop(seen):
        return "enough" if len(seen) >= 256 else None

    found = []
    for name, use in (("here", False), ("there", True)):
        job = rows(name=name)
        data = job.prepared.evaluation
        cluster: Any = evaluating_cluster(job)
        screening = Screening(job, data, elsewhere=evaluating.ClusterEvaluation(cluster) if use else None)
        assert screening.quality(case(batch=7), stop) is not None
        assert screening.quality(case(variant="fp16", batch=7), stop) is not None
        assert bool(job.opened) is not use
        found.append([(record.case, record.per_sample.tolist(), record.agreement.tolist()) for record in job.found])
        assert ("evaluated on the cluster" in job.found[0].notes[-1]) is use
    assert found[0] == found[1]
    assert [len(values) for _, values, _ in found[0]] == [700, 259]


# ---------------------------------------------- real schedulers and workers


def _hold(fields, folder):
    while not Path(fields["until"]).exists():
        time.sleep(0.01)
    return {}, {}


def _die(fields, folder):
    os.kill(os.getpid(), signal.SIGKILL)
    return {}, {}


def _echo(fields, folder):
    return {"pid": os.getpid()}, {}


def _install(dask_worker=None) -> None:
    tasks.KINDS.update(hold=_hold, die=_die, echo=_echo)


@pytest.fixture(scope="module")
def dask_cluster():
    """Two workers with kinds of work that misbehave. A nanny starts each anew when it dies."""
    import cloudpickle
    import dask
    from distributed import LocalCluster, WorkerPlugin

    class Kinds(WorkerPlugin):
        name = "kinds"

        def setup(self, worker):
            _install()

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=LOOPBACK) as cluster,
    ):
        with cluster.get_client() as setting_up:
            setting_up.register_plugin(Kinds())
        yield cluster
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def cluster(dask_cluster):
    with dask_cluster.get_client() as waiting:
        # One that a test before this killed may be on its way back.
        waiting.wait_for_workers(2, timeout=PATIENCE_S)
    with client.connect(address.settings(dask_cluster.scheduler_address, insecure=True)) as found:
        found._look_s = 0.05
        yield found


def pids(cluster: client.Cluster) -> dict[str, int]:
    told = cluster._client.run(os.getpid, on_error="return")
    return {worker: pid for worker, pid in told.items() if isinstance(pid, int)}


def begun(cluster: client.Cluster) -> list[str]:
    """Keys of what began, in order."""
    return [event["key"] for _, event in cluster._client.get_events(cluster._topic) or ()]


def in_thread(work) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


@pytest.mark.process
def test_a_poison_unit_ends_one_worker_and_no_more(cluster) -> None:
    before = pids(cluster)
    with pytest.raises(client.WorkerDied, match="died while it worked on this"):
        cluster.do("die", {}, [], limit_s=60)
    assert len(begun(cluster)) == 1
    after = until(lambda: len(now := pids(cluster)) == 2 and now, "the worker's return")
    assert len(set(before.values()) & set(after.values())) == 1
    assert cluster.do("echo", {}, [], limit_s=60).done["pid"] in after.values()


@pytest.mark.process
def test_units_that_only_waited_for_a_dead_worker_are_done_elsewhere(cluster, tmp_path: Path) -> None:
    release = tmp_path / "go"
    holds = [in_thread(lambda: cluster.do("hold", {"until": str(release)}, [], limit_s=600)) for _ in range(2)]
    until(lambda: len(begun(cluster)) == 2, "both workers' being busy")
    echoes = [in_thread(lambda: cluster.do("echo", {}, [], limit_s=600)) for _ in range(6)]
    # Dask queues some of them on the busy workers already.
    until(lambda: sum(map(len, cluster._client.processing().values())) > 2, "a queue on a worker")
    victim = next(worker for worker, keys in cluster._client.processing().items() if len(keys) > 1)
    os.kill(pids_by_facts(cluster, victim), signal.SIGKILL)
    until(lambda: any(found for _, found in holds), "the death")
    release.touch()
    for thread, _ in (*holds, *echoes):
        thread.join(PATIENCE_S)
    outcomes = [type(found[0]).__name__ for _, found in holds]
    assert sorted(outcomes) == ["Answer", "WorkerDied"]
    # One that is no answer tells itself in the comparison.
    assert [getattr(found[0], "begun", found[0]) for _, found in echoes] == [1] * 6
    assert all(found[0].done for _, found in echoes)
    again = [key for key in begun(cluster) if not key.endswith("-1")]
    assert again, "nothing was queued on the worker that died"


def pids_by_facts(cluster: client.Cluster, worker: str) -> int:
    return cluster._client.run(os.getpid, workers=[worker])[worker]


@pytest.mark.process
def test_a_result_that_died_with_its_worker_is_made_again_and_counted_once(
    cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask does this quietly. It is known here, and one unit gives one answer."""
    real, killed = cluster._result, []

    def result(future, key, *rest):
        until(future.done, "the result")
        if not killed:
            (where,) = set(cluster._places(key))
            killed.append(pids_by_facts(cluster, where))
            os.kill(killed[0], signal.SIGKILL)
            until(lambda: where not in cluster._client.nthreads(), "the death")
        return real(future, key, *rest)

    monkeypatch.setattr(cluster, "_result", result)
    found = cluster.do("echo", {}, [], limit_s=60)
    assert found.begun == 2
    assert found.done["pid"] != killed[0]


@pytest.mark.process
def test_work_that_hangs_is_ended_and_its_worker_returns(cluster, tmp_path: Path) -> None:
    before = pids(cluster)
    with pytest.raises(client.TookTooLong):
        cluster.do("hold", {"until": str(tmp_path / "never")}, [], limit_s=0.2)
    after = until(
        lambda: len(now := pids(cluster)) == 2 and set(now.values()) != set(before.values()) and now, "a restart"
    )
    assert len(set(before.values()) - set(after.values())) == 1
    assert cluster.do("echo", {}, [], limit_s=60).done is not None


@pytest.mark.process
@pytest.mark.runtime
def test_twenty_variants_and_evaluations_with_a_worker_killed_are_all_accounted_for(
    cluster, small_model: Path, tmp_path: Path, fake_study, listener
) -> None:
    texts = tuple(f"prune-magnitude{{sparsity={number / 100:g}}}" for number in range(40, 60))
    study = fake_study(variants=texts, backends=("ort",))
    variants = prepare.check_names(study)
    prepared = prepare.prepare(study, variants, tmp_path)
    store = building.ClusterArtifacts(tmp_path / "cache", cluster, lambda _: None)
    victim, pid = next(iter(pids(cluster).items()))
    # Frozen first, so that it surely holds work when it dies.
    os.kill(pid, signal.SIGSTOP)
    thread, settled = in_thread(lambda: list(store.ahead(prepared.source, variants, None, None)))
    until(lambda: len(list((tmp_path / "cache" / "entries").glob("*.json"))) >= 5, "the first variants")
    assert cluster._client.processing()[victim]
    os.kill(pid, signal.SIGKILL)
    thread.join(PATIENCE_S)
    assert settled == [[*texts]]
    made, failures = prepare.make_artifacts(prepared, variants, store, listener())
    assert [record.variant for record in made] == ["fp32", *texts]
    assert failures == []
    assert len(begun(cluster)) - len(set(begun(cluster))) == 0
    assert len(list((tmp_path / "cache" / "entries").glob("*.json"))) == 21

    # The same for evaluations: one worker dies in the middle, nothing is missing, nothing twice.
    until(lambda: len(cluster._client.nthreads()) == 2, "the worker's return")
    job = real_job(study, prepared, store, made, tmp_path / "run", listener())
    cases, _ = prepare.plan_cases(study, made)
    known = len(begun(cluster))
    thread, failed = in_thread(lambda: evaluate.evaluate(job, cases, evaluating.ClusterEvaluation(cluster)))
    until(lambda: len(begun(cluster)) > known + 4, "some evaluations")
    os.kill(next(iter(pids(cluster).values())), signal.SIGKILL)
    thread.join(2 * PATIENCE_S)
    assert failed == [set()]
    keys = [record.case for record in job.store.records(job.run_id, QualityRecord)]
    assert sorted(keys) == sorted(case.quality_key for case in cases)


def real_job(study, prepared, store, made, folder: Path, progress) -> Any:
    from profiler.environment import describe
    from profiler.job import Job
    from profiler.store import open_store

    folder.mkdir()
    database = open_store(folder)
    run_id = database.create_run(study, describe(), version="0")
    return Job(run_id, study, database, store, {record.variant: record for record in made}, prepared, folder, progress)


@pytest.mark.process
@pytest.mark.runtime
def test_a_run_with_a_cluster_gives_the_artifacts_and_accuracies_of_one_without(
    cluster, tmp_path: Path, listener
) -> None:
    from profiler import demo

    for name, arrays, count in (("e", demo.evaluation(), 300), ("c", demo.calibration(), 32)):
        np.savez(tmp_path / f"{name}.npz", **{key: array[:count] for key, array in arrays.items()})
    study = make_study(
        model=str(demo.model_path()), data=str(tmp_path / "e.npz"), calibration=str(tmp_path / "c.npz"),
        variants=("int8-dynamic", "int8-static{per_channel=true}", "fp16", "graph+int8-dynamic"), batches=(32,),
        backends=("ort",),
    )  # fmt: skip
    variants = prepare.check_names(study)
    found = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        prepared = prepare.prepare(study, variants, folder)
        assert prepared.calibration is not None
        store = ArtifactStore(folder / "cache")
        elsewhere_ = None
        if name == "there":
            store = building.ClusterArtifacts(folder / "cache", cluster, pytest.fail)
            list(store.ahead(prepared.source, variants, prepared.calibration.inputs, prepared.calibration.sha256))
            elsewhere_ = evaluating.ClusterEvaluation(cluster)
        made, failures = prepare.make_artifacts(prepared, variants, store, listener())
        assert failures == []
        job = real_job(study, prepared, store, made, folder / "run", listener())
        cases, _ = prepare.plan_cases(study, made)
        assert evaluate.evaluate(job, cases, elsewhere_) == set()
        assert not job.progress.notes
        qualities = job.store.records(job.run_id, QualityRecord)
        found.append(
            (
                [(record.variant, record.sha256, record.facts, record.size_bytes, record.equal_to) for record in made],
                {record.case: (record.per_sample.tolist(), record.agreement.tolist()) for record in qualities},
            )
        )
        on_cluster = [any("on the cluster" in note for note in record.notes) for record in qualities]
        assert on_cluster == [name == "there"] * len(cases)
    assert found[0] == found[1]
    # One of them equals another: merged there as here.
    assert [bool(row[4]) for row in found[0][0]] == [False, False, False, False, True]
    assert len(found[0][1]) == 4


@pytest.mark.process
def test_a_whole_run_uses_the_cluster_and_stores_the_same(cluster, fake_study, tmp_path: Path, listener) -> None:
    from profiler.run import execute
    from profiler.store import open_store

    study = fake_study(variants=("fp32", "int8-dynamic", PRUNED), limit=32)
    found = []
    for place_, used in ((tmp_path / "here", None), (tmp_path / "there", cluster)):
        heard = listener()
        run_id = execute(study, out=place_, progress=heard, cluster=used)
        run = open_store(place_).run(run_id)
        assert run.status == "finished"
        made_notes = [any("on the cluster machine" in note for note in record.notes) for record in run.artifacts]
        assert made_notes == [False, used is not None, used is not None]
        assert all(
            any("on the cluster" in note for note in record.notes) is (used is not None) for record in run.qualities
        )
        assert not any("cluster" in note for note in heard.notes)
        found.append(
            (
                {record.variant: (record.sha256, record.facts) for record in run.artifacts},
                {record.case: record.per_sample.tolist() for record in run.qualities},
                {block.case for block in run.blocks},
            )
        )
    assert found[0] == found[1]
    assert len(found[0][1]) == 3


def test_the_command_line_makes_keys_and_refuses_what_is_not_safe(
    tmp_path: Path, small_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    from profiler.cli import main

    monkeypatch.delenv(address.KEYS_VARIABLE, raising=False)

    def said(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        return int(str(ended.value.code)), " ".join("".join(capsys.readouterr()).split())

    code, text = said("cluster", "keys", str(tmp_path / "keys"), "--days", "3")
    assert (code, len(list((tmp_path / "keys").iterdir()))) == (0, 8)
    assert "ca.key stays on none of them" in text
    assert said("cluster", "keys", str(tmp_path / "keys"))[0] == 2
    out = ("--out", str(tmp_path / "runs"))
    for words, reason in (
        (("--cluster", "tcp://10.0.0.1:8786", "--cluster-insecure"), "not encrypted"),
        (("--cluster", "tcp://127.0.0.1:8786"), "--cluster-insecure"),
        (("--cluster-insecure",), "belong to --cluster ADDRESS"),
        (("--cluster", "tls://build.example"), "EDGEPROF_CLUSTER_KEYS"),
    ):
        for command in (("profile", str(small_model)), ("search", str(small_model)), ("cluster", "check")):
            if command[0] == "cluster":
                if words[0] != "--cluster":
                    continue
                code, text = said(*command, *words[1:])
            else:
                code, text = said(*command, *words, *out)
            assert (code, reason in text) == (2, True), text
    assert not (tmp_path / "runs").exists()


@pytest.mark.process
def test_a_scheduler_without_workers_is_refused_with_words() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=LOOPBACK, protocol="tcp", host="127.0.0.1"
        ) as empty,
        pytest.raises(TargetError, match="has no worker"),
    ):
        client.connect(address.settings(empty.scheduler_address, insecure=True), wait_s=0.5)


@pytest.mark.process
def test_dasks_own_settings_are_refused_with_the_setting_that_is_needed() -> None:
    import dask
    from distributed import LocalCluster

    options = {"processes": False, "dashboard_address": LOOPBACK, "protocol": "tcp", "host": "127.0.0.1"}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 3}),  # the default
        LocalCluster(n_workers=1, threads_per_worker=1, **options) as found,
    ):
        where = address.settings(found.scheduler_address, insecure=True)
        with pytest.raises(TargetError, match=r"kill 4 workers.*ALLOWED_FAILURES=0"):
            client.connect(where)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=3, **options) as found,
    ):
        where = address.settings(found.scheduler_address, insecure=True)
        with pytest.raises(TargetError, match="--nthreads 1"):
            client.connect(where)


def documented(program: str, keys: Path) -> tuple[dict[str, str], list[str]]:
    """Environment and words of the line of docs/cluster.md that starts a scheduler or a worker, with our folder of keys."""
    text = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if f"dask {program} " in line]
    words = shlex.split(line.replace("/etc/edgeprof", str(keys)))
    start = words.index("dask")
    return dict(word.split("=", 1) for word in words[:start]), [sys.executable, "-m", *words[start:]]


@pytest.fixture
def tls_cluster(keys: Path, tmp_path: Path):
    """A scheduler and workers as documented, but for ports and numbers; gives the address and the processes."""
    told, running = tmp_path / "scheduler.json", []

    def start(environment: dict[str, str], words: list[str]) -> None:
        nowhere = subprocess.DEVNULL
        running.append(
            subprocess.Popen(words, env={**os.environ, **environment}, stdout=nowhere, stderr=nowhere, cwd=tmp_path)
        )

    environment, words = documented("scheduler", keys)
    words[words.index("8786")] = "0"
    start(environment, [*words, "--host", "127.0.0.1", "--scheduler-file", str(told)])
    try:
        where = until(
            lambda: told.exists() and told.read_text() and json.loads(told.read_text())["address"], "the scheduler"
        )
        environment, words = documented("worker", keys)
        words[words.index("--nworkers") + 1] = "1"
        words[words.index("tls://build.example:8786")] = where
        start(environment, [*words, "--local-directory", str(tmp_path / "scratch")])
        yield where, running
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def plain_listeners(running: list[subprocess.Popen[bytes]]) -> list[str]:
    """Addresses, other than loopback, where a scheduler or a worker answers without TLS."""
    import psutil

    found = []
    for parent in running:
        for process in (psutil.Process(parent.pid), *psutil.Process(parent.pid).children(recursive=True)):
            for link in process.net_connections("tcp"):
                if link.status != psutil.CONN_LISTEN or link.laddr.ip in ("127.0.0.1", "::1"):
                    continue
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", link.laddr.port), 5) as sender,
                ):
                    sender.settimeout(5)
                    sender.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    if sender.recv(4).startswith(b"HTTP"):
                        found.append(f"{link.laddr.ip}:{link.laddr.port}")
    return found


@pytest.mark.process
def test_mutual_tls_as_documented(tls_cluster, keys: Path, small_model: Path, tmp_path: Path) -> None:
    from distributed import Client

    where, running = tls_cluster
    assert where.startswith("tls://")
    variant = registry.make(PRUNED)
    with client.connect(address.settings(where, keys), wait_s=PATIENCE_S) as cluster:
        store = building.ClusterArtifacts(tmp_path / "there", cluster, pytest.fail)
        record = store.make(small_model, variant, None, None)
    assert record.sha256 == ArtifactStore(tmp_path / "here").make(small_model, variant, None, None).sha256
    assert any("on the cluster machine" in note for note in record.notes)
    assert plain_listeners(running) == []
    make_keys(tmp_path / "strangers", now=datetime.now(timezone.utc), days=1)
    with pytest.raises(TargetError, match="certificates of the same authority"):
        client.connect(address.settings(where, tmp_path / "strangers"), wait_s=3)
    with pytest.raises(OSError, match=r"."):
        Client(where.replace("tls://", "tcp://"), timeout=3, set_as_default=False)
