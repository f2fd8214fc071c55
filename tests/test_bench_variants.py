"""What the comparison with other tools' variants says, on runs made up from known truths."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from profiler.analysis import analyse
from scripts.bench_variants_lib import compare, page

LABELS = {"external{label=nncf,path=a.xml}": "nncf", "external{label=slow,path=b.onnx}": "slow"}
PEER, SLOW = LABELS
OURS = "int8-static{per_channel=true}"


def right(count, wrong, seed=0):
    """`count` answers of which `wrong` are wrong."""
    answers = np.ones(count)
    answers[np.random.default_rng(seed).permutation(count)[:wrong]] = 0
    return answers


@pytest.fixture
def analysed(made_run):
    """`analysed(ours=…, peer=…)`: latencies relative to fp32 and wrong answers of 1,000, fp32 having none."""

    def make(ours=(0.5, 0), peer=(0.6, 0), slow=(2.0, 0)):
        made = made_run(processes=5, rounds=6, weather=0.1)
        for variant, (latency, wrong) in {"fp32": (1.0, 0), OURS: ours, PEER: peer, SLOW: slow}.items():
            case = made.case(variant)
            made.timed(case, latency * 1e-3, noise=0.003).answered(case, right(1000, wrong))
        analysis = analyse(made.data(), today=date(2026, 1, 1))
        return analysis, compare.rows(analysis, LABELS)

    return make


def test_the_faster_side_is_named_with_the_ratio(analysed):
    analysis, table = analysed(ours=(0.5, 0), peer=(0.6, 0))
    out = compare.outcome(analysis, table)
    assert (out.ours.variant, out.peer.variant, out.word) == (OURS, "nncf", "faster")
    assert out.ratio[0] == pytest.approx(5 / 6, rel=0.02)
    assert out.ratio[1] <= out.ratio[0] <= out.ratio[2]


def test_a_peer_that_wins_is_said_to(analysed):
    analysis, table = analysed(ours=(0.6, 0), peer=(0.5, 0))
    assert compare.outcome(analysis, table).word == "slower"


def test_too_great_a_drop_is_out_however_fast(analysed):
    """2 points lost: out; 0.9: in. What is left of ours is then the reference, which both sides have."""
    analysis, table = analysed(ours=(0.2, 20), peer=(0.6, 9))
    out = compare.outcome(analysis, table)
    assert out.ours.variant == "fp32"
    assert out.ours.side == "both"
    assert out.peer.variant == "nncf"
    assert out.word == "slower"


def test_nothing_but_the_common_case_is_no_comparison(analysed):
    analysis, table = analysed(ours=(1.5, 0), peer=(1.5, 0))
    out = compare.outcome(analysis, table)
    assert (out.word, out.ratio) == ("the same case", None)


def test_the_volume_is_the_area_by_hand(analysed):
    """A time of 0.5 without a drop covers half of the rectangle; at a drop of 2 of 5 points, three fifths of that half."""
    _, table = analysed(ours=(0.5, 0), peer=(0.5, 20))
    assert compare.volume(table, "ours") == pytest.approx(0.5, abs=0.02)
    assert compare.volume(table, "peer") == pytest.approx(0.3, abs=0.02)


def test_gains_count_only_where_it_says_so(made_run):
    made = made_run(processes=5, rounds=6)
    for variant, wrong, latency in (("fp32", 100, 1e-3), (OURS, 50, 0.5e-3)):
        case = made.case(variant)
        made.timed(case, latency, noise=0.003).answered(case, right(1000, wrong))
    table = compare.rows(analyse(made.data(), today=date(2026, 1, 1)), LABELS)
    assert compare.volume(table, "ours") == pytest.approx(0.5, abs=0.02)
    assert compare.volume(table, "ours", raw=True) == pytest.approx(1.0, abs=0.04)


def test_the_page_holds_what_was_found_between_its_markers(analysed):
    from dataclasses import asdict

    analysis, table = analysed(ours=(0.6, 0), peer=(0.5, 0))
    result = {
        "title": "A model", "facts": ["rows"], "command": "c", "date": "2026-01-01", "machine": "m", "effort": "e",
        "not_made": {"x": "why"},
        "peers": [{"label": "nncf", "about": "as documented", "seconds": 3.0, "why": None}],
        "rows": [asdict(row) for row in table], "outcome": asdict(compare.outcome(analysis, table)),
    }  # fmt: skip
    text = page.document({"model": result})
    assert "A peer's variant is faster on: model." in text
    assert text.index("| peer | `nncf` | `ort` | ") < text.index(f"| ours | `{OURS}` | `ort` | ")
    assert "- `x`: why" in text
    whole = page.between(f"head\n{page.BEGIN}\nold\n{page.END}\ntail\n", text)
    assert whole.startswith("head\n")
    assert whole.endswith("\ntail\n")
    assert "\nold\n" not in whole
    with pytest.raises(ValueError, match="no markers"):
        page.between("head", text)
