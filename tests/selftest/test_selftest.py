"""The whole self-test with the fake backend and an effort of milliseconds; and the command around it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from profiler import selftest
from profiler.errors import EdgeprofError, StudyError
from profiler.selftest import subject
from profiler.selftest.checks import Check
from profiler.selftest.inject import CannotInject
from profiler.selftest.known import Known
from profiler.selftest.omission import Omission
from profiler.selftest.subject import Subject
from profiler.store import open_store
from profiler.study import Effort

TINY = Effort(
    processes=3, rounds=3, block_s=0.01, block_samples=5, warmup_s=0.005, warmup_max_s=0.02, requeue_share=0.0
)
FIGURES = {
    "known_worst_p50_error_s", "aa_ratio", "aa_ratio_low", "aa_ratio_high", "slow_2_percent_ratio", "slow_5_percent_ratio",
    "quiet_labelled_share", "harness_in_sample_s", "harness_labels_s", "stop_pulses_recall", "stop_pulses_false_share",
    "spinners_recall", "quota_recall", "stall_open_p99_s", "stall_closed_p99_s",
}  # fmt: skip


@pytest.fixture
def fake(small_model) -> Subject:
    return Subject("fake", {"latency_us": "500", "read": "false"}, model=small_model)


@pytest.fixture
def quick(monkeypatch) -> None:
    """The parts with a clock of their own are tested beside this; here they only have to be asked."""
    monkeypatch.setattr(selftest, "measure_known", lambda repeats: [Known("constant", 4e-4, 4e-4, 5e-7, "flat")])
    monkeypatch.setattr(selftest, "measure_omission", lambda: Omission(0.48, 0.001))


def by_title(done: selftest.Selftest, words: str) -> Check:
    return next(check for check in done.checks if words in check.title)


def test_texts_and_keys_are_those_of_cases(fake):
    """Copies and slowed ones are backends of their own in every record."""
    assert Subject().text(copy="a") == "injected:ort{copy=a}"
    assert Subject().case(Subject().text(slow=0.02)) == "fp32@injected:ort{slow=0.02}/b1/t1"
    assert fake.text(slow=0.05) == "injected:fake{latency_us=500,read=false,slow=0.05}"


@pytest.mark.process
def test_the_self_test_measures_all_it_says(fake, quick, listener):
    """Every row, every figure, a record that names the machine."""
    heard = listener()
    done = selftest.run_selftest(minutes=0.5, what=fake, effort=TINY, progress=heard)
    stages = [title for title, _ in heard.stages]

    assert set(done.record.figures) >= FIGURES
    # What a few blocks of ten milliseconds find on a busy test machine is no assertion's business; that they were compared is.
    assert {"aa_ratio", "aa_pairs", "slow_5_percent_ratio", "slow_5_percent_pairs"} <= set(done.record.figures)
    assert by_title(done, "identical").title != by_title(done, "slowed by 5").title
    assert by_title(done, "harness").figures["harness_labels_s"] is not None
    assert done.record.passed == (done.sentence.startswith("Measurements on this machine can be trusted"))
    assert done.record.machine
    assert "known latencies" in stages
    assert "measuring" in stages


@pytest.mark.process
def test_the_model_that_cannot_be_measured_fails_the_self_test_and_nothing_else(small_model, quick):
    """A runtime that crashes: rows say why, no traceback, not passed."""
    broken = Subject("fake", {"fail": "raise", "read": "false"}, model=small_model)
    done = selftest.run_selftest(minutes=0.5, what=broken, effort=TINY)

    assert not done.record.passed
    assert by_title(done, "identical").verdict == "not measured"
    assert "fail=raise" in by_title(done, "identical").note
    assert by_title(done, "slowed by 5").figures == {"slow_5_percent_ratio": None}
    assert by_title(done, "stops").verdict == "not measured"


def test_what_cannot_be_injected_here_is_told(fake, quick, monkeypatch):
    """Rows without a figure carry the reason."""

    def refuse(*_: object, **__: object) -> None:
        raise CannotInject("cannot be injected here: no control groups.")

    monkeypatch.setattr(subject, "measure", lambda *_, **__: refuse())
    monkeypatch.setattr(selftest.inject, "cpu_quota", refuse)
    monkeypatch.setattr(selftest.inject, "spinners", refuse)
    done = selftest.run_selftest(minutes=1, what=fake, effort=TINY)

    assert by_title(done, "quota").note == "cannot be injected here: no control groups."
    assert done.record.figures["quota_recall"] is None
    assert f"{by_title(done, 'quota').title}: cannot be injected here: no control groups." in done.record.notes


def test_when_time_is_up_the_rest_is_said_to_be_missing(fake, quick, monkeypatch):
    """A clock that jumps past the end after the first part: what follows is not begun."""
    begun = []

    def failing(*_: object, **__: object) -> None:
        begun.append(1)
        raise EdgeprofError("not today")

    monkeypatch.setattr(subject, "measure", failing)
    moments = iter([0.0])
    done = selftest.run_selftest(minutes=1, what=fake, effort=TINY, clock=lambda: next(moments, 3600.0))

    assert len(begun) == 1
    assert "give more --minutes" in by_title(done, "stops").note
    assert "give more --minutes" in by_title(done, "stall").note


@pytest.mark.parametrize("minutes", [0, -1, 0.1, float("nan")])
def test_too_few_minutes_are_refused(minutes):
    """Before anything starts."""
    with pytest.raises(StudyError, match=r"--minutes .* are too few, the self-test needs 0.5"):
        selftest.run_selftest(minutes=minutes)


@pytest.fixture
def edgeprof(capsys) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        from profiler.cli import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def found(monkeypatch) -> list[dict[str, object]]:
    """`run_selftest` answers at once; what it was asked is kept."""
    from profiler.records import SelftestRecord
    from profiler.selftest import checks
    from profiler.stats.ratios import RatioEstimate

    asked: list[dict[str, object]] = []

    def answer(**given: object) -> selftest.Selftest:
        asked.append(given)
        rows = (
            checks.identical(RatioEstimate(1.05, 1.04, 1.06, 8, 0.0, None)),
            checks.missing("a quota", "labelled", ["quota_recall"], "no [control] groups"),
        )
        record = SelftestRecord("m" * 8, "2026-01-01T00:00:00+00:00", False, {"aa_ratio": 1.05, "quota_recall": None},
                                ("a quota: no [control] groups",))  # fmt: skip
        return selftest.Selftest(rows, record)

    monkeypatch.setattr(selftest, "run_selftest", answer)
    return asked


def test_the_command_prints_the_verdict_first_and_stores_the_record(edgeprof, found, tmp_path):
    """Exit code 1: done, but not passed. Brackets in notes are no markup."""
    code, out, _ = edgeprof("selftest", "--minutes", "2", "--backend", "ov:CPU{precision=f32}", "--out", tmp_path)

    assert code == 1
    assert out.startswith("Nothing shows that measurements on this machine can be trusted: two identical models")
    assert "1.0500 [1.0400, 1.0600]" in out
    assert "no [control] groups" in out
    assert found[0]["minutes"] == 2
    assert found[0]["what"] == Subject("ov", {"device": "CPU", "precision": "f32"})
    store = open_store(tmp_path)
    assert store.last_selftest("mmmmmmmm").figures == {"aa_ratio": 1.05, "quota_recall": None}
    store.close()


def test_the_command_s_json_has_record_and_rows(edgeprof, found, tmp_path):
    """For other programs."""
    told = json.loads(edgeprof("selftest", "--json", "--out", tmp_path)[1])

    assert (told["passed"], told["figures"]["aa_ratio"], told["checks"][1]["verdict"]) == (False, 1.05, "not measured")


def test_the_command_knows_its_backends(edgeprof, found, tmp_path):
    """A typo is told before anything is measured."""
    code, _, err = edgeprof("selftest", "--backend", "orrt", "--out", tmp_path)

    assert (code, found) == (2, [])
    assert "Did you mean ort" in err


def test_an_unwritable_folder_is_told_before_the_measurement(edgeprof, found, tmp_path):
    """Not after three minutes."""
    (tmp_path / "file").write_text("")
    code, _, err = edgeprof("selftest", "--out", tmp_path / "file")

    assert (code, found) == (2, [])
    assert "cannot write to" in err
