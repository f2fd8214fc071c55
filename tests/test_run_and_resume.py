"""A run stores what it sees at once, survives its failures, and resumed it is the run that was never interrupted."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import pytest

from profiler.analysis import analyse
from profiler.campaign import plan_groups
from profiler.errors import BudgetError, DataError, EdgeprofError, ModelError, StoreError, StudyError
from profiler.records import BlockRecord
from profiler.run import execute
from profiler.store import open_store
from profiler.study import Case, make_study

ROOT = Path(__file__).parents[1]
TINY_EFFORT = {
    "processes": 2,
    "rounds": 2,
    "block_samples": 5,
    "warmup_s": 0.002,
    "warmup_max_s": 0.02,
    "requeue_share": 0.0,
}
ONE = {"processes": 1, "rounds": 1, "block_s": 0.002, "warmup_s": 0.002, "warmup_max_s": 0.02, "requeue_share": 0.0}
FAKE, OTHER = "fake{read=false}", "fake{read=false,seed=1}"


def failing(**options) -> str:
    return "fake{" + ",".join(f"{key}={value}" for key, value in sorted({"read": "false", **options}.items())) + "}"


def read(out, run_id: str = "latest"):
    store = open_store(out, create=False)
    try:
        return store.run(store.resolve(run_id))
    finally:
        store.close()


def blocks_of(run):
    return {(b.case, b.replicate, b.group, b.round) for b in run.blocks}


def answers_of(run):
    return {
        q.case: (
            q.metric, q.per_sample.tobytes(), None if q.predictions is None else q.predictions.tobytes(),
            q.agreement.tobytes(), q.data_sha256, q.notes,
        )
        for q in run.qualities
    }  # fmt: skip


def artifacts_of(run):
    return {a.variant: (a.sha256, a.size_bytes, a.changed, a.equal_to) for a in run.artifacts}


def assert_same_run(whole, resumed):
    """The same blocks, answers, artifacts and plan; every block from one process and none measured in vain."""
    assert blocks_of(whole) == blocks_of(resumed)
    assert len(resumed.blocks) == len(blocks_of(resumed))
    assert answers_of(whole) == answers_of(resumed)
    assert len(resumed.qualities) == len(answers_of(resumed))
    assert artifacts_of(whole) == artifacts_of(resumed)
    # Whether others use the machine at the moment is not the run's doing.
    assert {**whole.plan, "dedicated": None} == {**resumed.plan, "dedicated": None}
    assert {(f.case, f.stage, f.kind) for f in whole.failures} == {(f.case, f.stage, f.kind) for f in resumed.failures}
    assert_nothing_twice(resumed)


def assert_nothing_twice(run):
    """A process is only started for a case with missing blocks, and its blocks follow those of earlier attempts."""
    rounds = run.study.effort.rounds
    for process in run.processes:
        before = [
            block for block in run.blocks
            if (block.case, block.replicate, block.group) == (process.case, process.replicate, process.group)
            and block.attempt < process.attempt
        ]  # fmt: skip
        assert len(before) < rounds
    for (case, replicate, group), _ in Counter((b.case, b.replicate, b.group) for b in run.blocks).items():
        mine = [b for b in run.blocks if (b.case, b.replicate, b.group) == (case, replicate, group)]
        assert [b.attempt for b in mine] == sorted(b.attempt for b in mine)
        assert sorted(b.round for b in mine) == list(range(rounds))


@pytest.mark.process
def test_a_run_measures_every_block_of_its_plan(tmp_path, fake_study, listener):
    """Cases × processes × rounds, each once; answers for every variant; and the progress adds up."""
    heard = listener()
    study = fake_study(backends=(FAKE, OTHER), batches=(1, 4))
    run = read(tmp_path, execute(study, out=tmp_path, progress=heard))
    keys = {f"fp32@{backend}/b{batch}/t1" for backend in study.backends for batch in (1, 4)}

    assert run.status == "finished"
    assert {(key, replicate, 0, index) for key in keys for replicate in range(2) for index in range(2)} == blocks_of(
        run
    )
    assert {key.removesuffix("/t1") for key in keys} == set(answers_of(run))
    assert 8 == len(run.processes) == len({(p.pid, p.case) for p in run.processes})
    assert all(len(b.samples_s) >= 5 and (b.samples_s > 0).all() and b.discarded < len(b.samples_s) for b in run.blocks)
    assert sum(steps for _, steps in heard.stages) == len(heard.steps)
    assert sorted(b.position for b in run.blocks if (b.replicate, b.round) == (0, 0)) == [0, 1, 2, 3]


@pytest.mark.process
def test_the_order_of_blocks_is_drawn_anew_in_each_round_and_known_from_the_seed(tmp_path, fake_study):
    """Random, stored, and the same for the same seed."""

    def orders(out, seed):
        backends = tuple(failing(seed=n) for n in range(3))
        study = fake_study(backends=backends, seed=seed, data=None, effort={**ONE, "rounds": 6})
        run = read(out, execute(study, out=out))
        return [
            tuple(b.case for b in sorted(run.blocks, key=lambda b: b.position) if b.round == index)
            for index in range(6)
        ]

    first = orders(tmp_path / "a", 0)

    assert len(set(first)) > 1
    assert first == orders(tmp_path / "b", 0)


@pytest.mark.process
def test_accuracy_is_the_same_at_every_batch_size(tmp_path, fake_study):
    """The last batch is filled up with rows and cut again: 64 rows in batches of 7 give 64 answers."""
    run = read(tmp_path, execute(fake_study(batches=(1, 7, 64), effort=ONE), out=tmp_path))
    one, *others = answers_of(run).values()

    assert [one, one] == others
    assert all(len(q.per_sample) == 64 for q in run.qualities)


@pytest.mark.process
def test_failures_are_records_and_the_other_cases_finish(tmp_path, fake_study):
    """A native crash, a hang, the OOM killer, an exit: each with its kind and log, and the healthy case is measured whole."""
    backends = (
        FAKE, failing(fail="segv"), failing(fail="hang", fail_at=66), failing(fail="oom", fail_at="infer"),
        failing(fail="exit", fail_at=80), failing(fail="unsupported"),
    )  # fmt: skip
    study = fake_study(backends=backends, time_limit_s=2.0)
    run = read(tmp_path, execute(study, out=tmp_path))
    found = {f.case.partition("@")[2].partition("/")[0]: f for f in run.failures}
    kinds = {backend: (failure.kind, failure.stage) for backend, failure in found.items()}

    assert run.status == "finished"
    assert {
        failing(fail="segv"): ("crash", "quality"),
        # A SIGKILL that came from no shortage of memory.
        failing(fail="oom", fail_at="infer"): ("crash", "quality"),
        failing(fail="unsupported"): ("unsupported", "quality"),
        failing(fail="hang", fail_at=66): ("timeout", "warmup"),
    } == {key: kinds[key] for key in kinds if "exit" not in key}
    assert kinds[failing(fail="exit", fail_at=80)][0] == "crash"
    hang = found[failing(fail="hang", fail_at=66)]
    assert "--time-limit" in hang.message
    assert "_hang" in hang.log_tail
    assert {(f"fp32@{FAKE}/b1/t1", r, 0, i) for r in range(2) for i in range(2)} <= blocks_of(run)


@pytest.mark.process
def test_a_case_beyond_the_memory_limit_fails_alone(tmp_path, fake_study):
    """Its neighbours are measured."""
    study = fake_study(backends=(FAKE, failing(memory_mb=3000)), effort=ONE, memory_limit_bytes=700_000_000)
    run = read(tmp_path, execute(study, out=tmp_path))

    assert [f.kind for f in run.failures] == ["out_of_memory"]
    assert len(run.blocks) == 1


@pytest.mark.process
def test_when_the_reference_fails_the_others_are_still_measured(tmp_path, fake_study):
    """And their records say that there was nothing to compare with."""
    study = fake_study(backends=(failing(fail="segv"), FAKE), effort=ONE)
    run = read(tmp_path, execute(study, out=tmp_path))

    assert {f"fp32@{FAKE}/b1"} == set(answers_of(run))
    assert blocks_of(run)
    assert "crash" in {f.kind for f in run.failures}


RESUMED = {"backends": (FAKE, OTHER)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_model, small_data):
    """The run that was never interrupted, and the artifacts it made."""
    out = tmp_path_factory.mktemp("whole")
    effort = {
        "processes": 2,
        "rounds": 2,
        "block_s": 0.002,
        "block_samples": 5,
        "warmup_s": 0.002,
        "warmup_max_s": 0.02,
        "requeue_share": 0.0,
    }
    study = make_study(model=str(small_model), data=str(small_data), effort=effort, variants=("fp32",), **RESUMED)
    return read(out, execute(study, out=out)), out / "cache"


@pytest.mark.process
@pytest.mark.parametrize("step", [2, 3, 8])
def test_an_interrupted_run_resumes_to_what_it_would_have_been(tmp_path, fake_study, listener, whole, step):
    """Ctrl-C while making, evaluating, opening, measuring: marked as interrupted, and the rest is measured, once."""

    def interrupt():
        raise KeyboardInterrupt

    run, cache = whole
    shutil.copytree(cache, tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        execute(fake_study(**RESUMED), out=tmp_path, progress=listener(step, interrupt))
    cut = read(tmp_path)
    run_id = execute(None, out=tmp_path, resume="latest")
    resumed = read(tmp_path)

    assert ("interrupted", run_id, "finished") == (cut.status, cut.id, resumed.status)
    assert_same_run(run, resumed)
    assert {block.samples_s.tobytes() for block in cut.blocks} <= {
        block.samples_s.tobytes() for block in resumed.blocks
    }


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import json
    from profiler.progress import Silent
    from profiler.run import execute
    from profiler.study import make_study
    class Killer(Silent):
        steps = 0
        def step(self, text=""):
            self.steps += 1
            if self.steps == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
    study = None if sys.argv[2] == "resume" else make_study(**json.loads(sys.argv[2]))
    execute(study, out=Path(sys.argv[1]), resume="latest" if study is None else None, progress=Killer())
"""


def killed_at(out, study, step: int) -> int:
    arguments = [str(out), "resume" if study is None else study.to_json(), str(step)]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        check=False,
    ).returncode


@pytest.mark.process
def test_a_run_killed_again_and_again_is_the_run_that_was_not(tmp_path, fake_study, whole):
    """SIGKILL at chosen steps of several stages, one after the other on one run: nothing is lost, nothing is measured twice."""
    run, cache = whole
    shutil.copytree(cache, tmp_path / "cache")
    codes = [killed_at(tmp_path, fake_study(**RESUMED), 3), *(killed_at(tmp_path, None, step) for step in (8, 12))]
    first = read(tmp_path)
    execute(None, out=tmp_path, resume="latest")

    assert codes == [-signal.SIGKILL] * 3
    assert first.status == "running"
    assert_same_run(run, read(tmp_path))


@pytest.mark.process
def test_resuming_a_finished_run_measures_nothing(tmp_path, fake_study):
    """It stays as it is, to the byte."""
    execute(fake_study(effort=ONE), out=tmp_path)
    before = read(tmp_path)
    execute(None, out=tmp_path, resume="latest")
    after = read(tmp_path)

    assert [b.samples_s.tobytes() for b in before.blocks] == [b.samples_s.tobytes() for b in after.blocks]
    assert ([p.pid for p in before.processes], "finished") == ([p.pid for p in after.processes], after.status)


@pytest.mark.process
def test_agreement_after_a_resume_is_with_the_reference_although_its_file_is_gone(tmp_path, fake_study, listener):
    """Without the stored outputs the reference is asked again: a variant is never compared with itself."""
    study = fake_study(backends=(FAKE, OTHER), effort=ONE)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(study, out=tmp_path, progress=listener(3, interrupt))
    cut = read(tmp_path)
    shutil.rmtree(tmp_path / cut.id)
    execute(None, out=tmp_path, resume="latest")
    run = read(tmp_path)

    assert [f"fp32@{FAKE}/b1"] == [q.case for q in cut.qualities]
    assert [q.notes for q in run.qualities] == [(), ()]
    assert (tmp_path / run.id / "reference-outputs.bin").is_file()


@pytest.mark.process
@pytest.mark.parametrize("damage", [b"garbage"])
def test_a_damaged_reference_file_is_made_again(tmp_path, fake_study, listener, damage):
    """A torn write is like a missing file."""

    def interrupt():
        raise KeyboardInterrupt

    study = fake_study(backends=(FAKE, OTHER), effort=ONE)
    with pytest.raises(KeyboardInterrupt):
        execute(study, out=tmp_path, progress=listener(3, interrupt))
    path = tmp_path / read(tmp_path).id / "reference-outputs.bin"
    path.write_bytes(damage)
    execute(None, out=tmp_path, resume="latest")

    assert len(read(tmp_path).qualities) == 2


@pytest.mark.process
def test_a_run_whose_data_or_model_changed_is_not_resumed(tmp_path, fake_study, build_model, listener):
    """Numbers of two models or two data sets in one run would be compared."""

    def interrupt():
        raise KeyboardInterrupt

    model, data = build_model(tmp_path / "m.onnx"), tmp_path / "d.npz"
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    np.savez(data, x=rows)
    with pytest.raises(KeyboardInterrupt):
        execute(fake_study(model=str(model), data=str(data)), out=tmp_path / "o", progress=listener(5, interrupt))
    np.savez(data, x=rows + 1)
    with pytest.raises(StudyError, match="data changed"):
        execute(None, out=tmp_path / "o", resume="latest")
    np.savez(data, x=rows)
    build_model(model, seed=9)
    with pytest.raises(StudyError, match=r"model .*changed"):
        execute(None, out=tmp_path / "o", resume="latest")

    assert read(tmp_path / "o").status == "interrupted"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"model": "/no/such.onnx"}, ModelError, "no/such"),
        ({"data": "/no/such.npz"}, DataError, "no/such"),
        ({"variants": ("int8-statik",)}, StudyError, "Did you mean int8-static"),
        ({"backends": ("ortt",)}, StudyError, "Did you mean ort"),
        ({"backends": ("ort:cudda",)}, StudyError, "Did you mean cuda"),
        ({"metric": "top-1"}, StudyError, "Did you mean top1"),
        ({"cost": {"machine": "aws:c7i.larg"}}, StudyError, "c7i.large"),
        ({"cost": {"machine": "device:raspberry-pi-55"}}, StudyError, "raspberry-pi-5"),
        ({"cost": {"prices": "/no/such.csv"}}, StudyError, "/no/such.csv"),
        ({"targets": ("jetson",)}, StudyError, "unknown target"),
        ({"data": None, "input_shapes": {"z": (4,)}}, StudyError, "unknown input in --shape 'z'"),
        ({"data": None, "input_shapes": {"x": (8, 8)}}, StudyError, "does not fit the model"),
        ({"data": None, "input_shapes": {"x": (9,)}}, StudyError, "does not fit the model"),
    ],
    ids=str,
)
def test_what_is_not_possible_leaves_no_run_behind(tmp_path, fake_study, settings, error, words):
    """Refused before anything is measured; `latest` is still the last run with results."""
    with pytest.raises(error, match=re.escape(words)):
        execute(fake_study(**settings), out=tmp_path)
    store = open_store(tmp_path)
    runs = store.runs()
    store.close()

    assert runs == []
    assert {"cache", ".lock", "edgeprof.sqlite"} >= {path.name for path in tmp_path.iterdir()}


def test_a_fixed_batch_axis_is_told(tmp_path, fake_study, small_model):
    """With the batch that works."""
    import onnx

    model = onnx.load(str(small_model))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, str(tmp_path / "fixed.onnx"))

    with pytest.raises(StudyError, match="--batch 2"):
        execute(fake_study(model=str(tmp_path / "fixed.onnx")), out=tmp_path / "o")


def test_nothing_to_run_is_told(tmp_path):
    """Neither a study nor a run."""
    with pytest.raises(StudyError, match="nothing to run"):
        execute(None, out=tmp_path)
    with pytest.raises(StoreError, match="no runs"):
        execute(None, out=tmp_path, resume="latest")


def test_two_runs_at_once_in_a_folder_are_refused(tmp_path, fake_study):
    """The second names the process of the first; when that is gone, however it ended, the folder is free."""
    code = (
        "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(f, fcntl.LOCK_EX); "
        "os.pwrite(f, str(os.getpid()).encode(), 0); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    with pytest.raises(StoreError, match=rf"process {holder.pid}.*--out"):
        execute(fake_study(), out=tmp_path)
    holder.kill()
    holder.wait()
    for stream in (holder.stdin, holder.stdout):
        stream.close()
    with pytest.raises(ModelError):
        execute(fake_study(model="gone.onnx"), out=tmp_path)

    handle = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


@pytest.mark.process
def test_no_worker_is_left_after_a_run(tmp_path, fake_study):
    """Not after failures and not after success."""
    execute(fake_study(backends=(FAKE, failing(fail="segv", fail_at=70)), effort=ONE), out=tmp_path)

    assert [
        child for child in psutil.Process().children(recursive=True) if "profiler.worker" in " ".join(child.cmdline())
    ] == []


@pytest.mark.process
def test_an_error_inside_a_run_marks_it_as_interrupted(tmp_path, fake_study, listener):
    """Whatever it was: the run can be resumed, and `edgeprof runs` does not show it as running for ever."""

    def fail():
        raise RuntimeError("the terminal went away")

    with pytest.raises(RuntimeError):
        execute(fake_study(), out=tmp_path, progress=listener(4, fail))

    assert read(tmp_path).status == "interrupted"


@pytest.mark.process
def test_another_database_can_hold_the_records(tmp_path, fake_study):
    """An SQLAlchemy URL instead of the folder's own file; files stay in the folder."""
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    run_id = execute(fake_study(effort=ONE), out=tmp_path / "out", database=url)
    store = open_store(url)

    assert len(store.records(run_id, BlockRecord)) == 1
    assert not (tmp_path / "out" / "edgeprof.sqlite").exists()
    store.close()


@pytest.mark.process
@pytest.mark.runtime
def test_a_real_runtime_runs_from_model_to_records(tmp_path, fake_study):
    """onnxruntime on the small model: the pruned variant's answers are compared with the reference's."""
    study = fake_study(backends=("ort",), variants=("fp32", "prune-magnitude{sparsity=0.5}"), effort=ONE)
    run = read(tmp_path, execute(study, out=tmp_path))
    answers = {q.case: q for q in run.qualities}

    assert [f for f in run.failures if f.kind != "skipped"] == []
    assert (answers["fp32@ort/b1"].agreement == 1).all()
    assert 0.5 < answers["prune-magnitude{sparsity=0.5}@ort/b1"].agreement.mean() <= 1
    assert {"CPUExecutionProvider"} == {p.facts.provider for p in run.processes}


def case(variant: str, backend: str = "ort") -> Case:
    return Case(variant, backend, "local", 1, 1)


def test_groups_fit_into_memory_and_each_holds_its_references():
    """Cases that do not fit together are measured in groups, and every group has what its cases are compared with."""
    study = make_study(model="m", backends=("ort", "ov"))
    cases = [case(v, b) for b in study.backends for v in ("fp32", *(f"v{n}" for n in range(20)))]
    references = {c.key: (case("fp32"),) for c in cases}
    sizes = {c.variant: 100 << 20 for c in cases}
    groups = plan_groups(cases, sizes, 4 << 30, references)

    assert {c.key for c in cases} == {c.key for group in groups for c in group}
    assert len(groups) > 1
    for group in groups:
        assert case("fp32") in group
        assert len(group) == len(set(group))
        assert len(group) <= 2 or len(group) * (500 << 20) <= 4 << 30


def test_a_case_larger_than_memory_still_gets_its_turn():
    """Alone with its reference."""
    groups = plan_groups(
        [case("fp32"), case("huge")], {"fp32": 1, "huge": 1 << 50}, 1 << 30, {case("huge").key: (case("fp32"),)}
    )

    assert [[case("fp32")], [case("huge"), case("fp32")]] == groups


def test_errors_of_a_run_are_edgeprof_errors():
    """One base class for everything a person can cause."""
    assert all(issubclass(kind, EdgeprofError) for kind in (StudyError, ModelError, DataError, StoreError))


@pytest.mark.process
def test_a_soak_takes_the_place_of_the_rounds(tmp_path, fake_study):
    """Its blocks say which phase they belong to, and only the sustained ones make the case's latency."""
    plan = {"max_s": 1.0, "burst_s": 0.1, "sustained_s": 0.1, "cool_max_s": 0.0}
    run = read(tmp_path, execute(fake_study(soak=plan, data=None), out=tmp_path))
    phases = [block.labels["soak_phase"] for block in run.blocks]
    (case,) = analyse(run, today=date(2026, 1, 1)).cases

    assert {0.0, 2.0} <= set(phases) <= {0.0, 1.0, 2.0}
    assert case.blocks == phases.count(2.0)


@pytest.mark.process
def test_a_time_budget_ends_the_run_with_what_it_has(tmp_path, fake_study):
    """Far from precise, but a run like any other: finished, with figures, and within its time."""
    began = time.monotonic()
    study = fake_study(time_budget_s=8.0, data=None, effort={**TINY_EFFORT, "block_s": 0.1, "precision": 0.0001})
    run = read(tmp_path, execute(study, out=tmp_path))
    (case,) = analyse(run, today=date(2026, 1, 1)).cases

    assert run.status == "finished"
    assert (case.status, case.stopping.status) == ("measured", "budget_exhausted")
    # The clock of a test machine is not asserted; that no process began after the end is.
    assert all(block.started_s < began + 8.0 for block in run.blocks)


@pytest.mark.process
def test_a_budget_too_short_for_a_round_keeps_what_was_stored(tmp_path, fake_study):
    with pytest.raises(BudgetError, match=r"--time-budget.*run --resume \d"):
        execute(fake_study(time_budget_s=0.05), out=tmp_path)
    run = read(tmp_path)

    assert run.status == "interrupted"
    assert run.blocks == ()
    assert run.artifacts


@pytest.mark.process
def test_a_killed_run_is_not_called_running(tmp_path, fake_study, capsys):
    """It could not say so itself: the lock of its folder is free."""
    from profiler.cli.app import main

    execute(fake_study(effort=ONE), out=tmp_path)
    store = open_store(tmp_path)
    store.set_status(store.resolve("latest"), "running")
    store.close()
    with pytest.raises(SystemExit):
        main(["runs", "--out", str(tmp_path), "--json"])
    free = capsys.readouterr().out
    with (tmp_path / ".lock").open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            main(["runs", "--out", str(tmp_path), "--json"])
    held = capsys.readouterr().out

    assert '"interrupted"' in free
    assert '"running"' in held
