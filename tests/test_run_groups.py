"""Groups fit into the memory of the machine that they are resident on, not of the one that controls it."""

from __future__ import annotations

from types import SimpleNamespace

from profiler.run import groups
from profiler.study import expand, make_study


def test_a_small_device_holds_fewer_workers_at_a_time():
    """Each group still has what its cases are compared with, and belongs to one target."""
    variants = tuple(f"v{number}" for number in range(11))
    study = make_study(model="m", backends=("ort",), targets=("server", "pi", "pi{cores=little}"), variants=variants)
    made = [SimpleNamespace(variant=name, size_bytes=100 << 20) for name in ("fp32", *variants)]
    cases = expand(study, variants)
    found = groups(study, cases, made, {"server": 64 << 30, "pi": 4 << 30, "pi{cores=little}": 4 << 30})
    sizes = {target: [len(group) for group in found if group[0].target == target] for target in study.targets}

    assert sizes["server"] == [12]
    # 60 % of 4 GiB, 200 MiB and three times 100 MiB for each: four, of which one is the reference.
    assert sizes["pi"] == sizes["pi{cores=little}"] == [4, 4, 4, 3]
    assert all(len({case.target for case in group}) == 1 for group in found)
    assert all(any(case.is_reference_variant for case in group) for group in found)
    assert set(cases) == {case for group in found for case in group}
