"""What the end-to-end scripts conclude from runs: a check that finds nothing wrong must be able to find it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiler.records import FailureRecord
from scripts.targets_lib import compare, page, relay
from scripts.targets_lib.product import Checks


def there(run, target="pi"):
    """The same run as measured on a target."""

    def named(record):
        return replace(record, case=f"{record.case}@{target}")

    cases = [{**case, "target": target} for case in run.plan["cases"]]
    return replace(
        run, plan={**run.plan, "cases": cases}, blocks=tuple(map(named, run.blocks)),
        processes=tuple(map(named, run.processes)), qualities=tuple(map(named, run.qualities)),
        failures=tuple(map(named, run.failures)),
    )  # fmt: skip


@pytest.fixture
def run(made_run):
    """Two variants with answers, two processes of three rounds each."""
    made = made_run(processes=2, rounds=3)
    for variant, latency_s, answers in (("fp32", 1e-3, np.ones(20)), ("int8-static", 0.5e-3, np.r_[np.ones(19), 0])):
        case = made.case(variant)
        made.made(variant).timed(case, latency_s).answered(case, answers)
    return made.data()


class TestDifferences:
    def test_the_same_elsewhere_has_none(self, run):
        assert compare.differences(there(run), run, "pi") == []

    @pytest.mark.parametrize("kind", ["blocks", "processes", "qualities"])
    def test_a_record_less_is_one(self, run, kind):
        short = there(run)
        short = replace(short, **{kind: getattr(short, kind)[1:]})
        assert compare.differences(short, run, "pi")

    def test_a_block_twice_is_one(self, run):
        double = there(run)
        double = replace(double, blocks=(*double.blocks, double.blocks[0]))
        assert any("counts" in text for text in compare.differences(double, run, "pi"))

    def test_another_answer_is_one_unless_the_arithmetic_may_differ(self, run):
        other = there(run)
        changed = replace(other.qualities[0], per_sample=1 - other.qualities[0].per_sample)
        other = replace(other, qualities=(changed, *other.qualities[1:]))
        assert any("answers of" in text for text in compare.differences(other, run, "pi"))
        assert compare.differences(other, run, "pi", same_arithmetic=False) == []

    def test_a_failure_more_is_one(self, run):
        failed = FailureRecord(case=f"{run.blocks[0].case}@pi", stage="measure", kind="crash", message="gone")
        assert any(
            "failures" in text for text in compare.differences(replace(there(run), failures=(failed,)), run, "pi")
        )

    def test_a_block_of_another_device_is_one(self, run):
        assert any("elsewhere" in text for text in compare.differences(run, run, "pi"))

    def test_a_block_of_an_attempt_that_never_was_is_one(self, run):
        odd = there(run)
        odd = replace(odd, blocks=(replace(odd.blocks[0], attempt=7), *odd.blocks[1:]))
        assert any("no process" in text for text in compare.differences(odd, run, "pi"))


class TestAgreement:
    @staticmethod
    def processes(ratio, seed, spread=0.02, count=12):
        rng = np.random.default_rng(seed)
        return [np.log(ratio) + rng.normal(0, spread) + rng.normal(0, spread, 5) for _ in range(count)]

    def test_the_quotient_of_equal_ratios_holds_one(self):
        found = [
            compare.agreement(self.processes(0.6, seed), self.processes(0.6, seed + 1000), 0.95)[2]
            for seed in range(200)
        ]
        share = np.mean([low <= 1 <= high for _, low, high in found])
        assert 0.9 <= share <= 0.99

    def test_another_ratio_is_found(self):
        one, other, (value, low, high) = compare.agreement(self.processes(0.66, 1), self.processes(0.6, 2), 0.999)
        assert low <= 1.1 <= high
        assert low > 1
        assert value == pytest.approx(one.value / other.value)
        assert not compare.overlap(one, other)

    def test_ratios_are_taken_inside_rounds(self, run):
        found = compare.log_ratios(there(run), "pi", *(f"{name}@ort/b1/t1" for name in ("int8-static", "fp32")))
        assert len(found) == 2
        assert [len(values) for values in found] == [3, 3]
        assert np.exp(np.mean(found)) == pytest.approx(0.5, rel=0.1)


def test_a_page_tells_what_held_and_where():
    checks = Checks()
    checks.expect(True, "nothing is left")
    checks.fact("board: yes")
    text = page.section("ssh", {"tables": [("Kills", ["a", "b"], [["1", "2"]])]}, checks, 12.3, quick=True)
    assert "scripts/e2e_ssh --quick" in text
    assert "| 1 | 2 |" in text
    assert "- nothing is left" in text
    assert "board: yes" in text


def test_a_check_that_fails_is_kept_with_its_reason(capsys):
    checks = Checks()
    assert not checks.expect(False, "home as before", "a file is there")
    assert checks.bad == ["home as before: a file is there"]
    assert "FAIL" in capsys.readouterr().out


def test_the_relay_is_a_script_of_its_own():
    # ssh starts it by its path, with whatever Python: it may import nothing of ours.
    source = Path(relay.__file__).read_text(encoding="utf-8")
    assert "profiler" not in source
    assert "scripts" not in source
