"""Which machine a case ran on, from a plan that anybody may have written."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from profiler.machines import machine, machines
from tests.machines import ENVELOPE, HOST, KNOWN, PI, TRUTH, fleet


def test_each_target_has_its_own_machine():
    """This one's facts are the run's, another's are the plan's; conditions are the device's own."""
    run = fleet({("fp32", "local"): (1e-3, 0), ("fp32", "pi{cores=big}"): (1e-3, 0), ("fp32", "board"): (1e-3, 0)})
    here, pi, board = machines(run).values()

    assert (here.environment, here.here, here.real, here.source) == (HOST, True, True, "measured here")
    assert (pi.environment, pi.here, pi.name, pi.profile, pi.real) == (PI, False, "pi", "raspberry-pi-5-8gb", True)
    assert (board.emulated, board.real, board.source) == (True, False, "emulated")


def test_a_text_with_conditions_of_its_own_comes_before_the_name():
    known = {**KNOWN, "pi{power=15W}": {**KNOWN["pi"], "device": "jetson-orin-nano-8gb"}}

    assert machine(fleet({}, known=known), "pi{power=15W}").profile == "jetson-orin-nano-8gb"
    assert machine(fleet({}, known=known), "pi{power=30W}").profile == "raspberry-pi-5-8gb"


@pytest.mark.parametrize(
    ("target", "group", "envelope"),
    [
        ("local", "local", None),
        ("pi{power=15W}", "pi", None),
        ("pi{cores=big}", "pi", None),
        (ENVELOPE, ENVELOPE, "envelope: 1 cpu, 512 MB on this machine, not the latency of a device of that size"),
        ("pi{memory=1GB}", "pi{memory=1GB}", "envelope: 1.00 GB on pi, not the latency of a device of that size"),
        ("pi{future=1}", "pi{future=1}", "under conditions that this edgeprof does not know: pi{future=1}"),
    ],
)
def test_limits_make_an_envelope_and_states_of_a_device_do_not(target, group, envelope):
    """What this version does not know is no device either: nothing may be claimed of it."""
    found = machine(fleet({}), target)

    assert (found.group, found.envelope, found.real) == (group, envelope, envelope is None)


@pytest.mark.parametrize(
    "stored",
    [
        "no mapping", {"pi": "no mapping"}, {"pi": {}}, {"pi": {"environment": {"hostname": 7}}}, {"pi": {"environment": None}},
        {"pi": {"environment": {**asdict(PI), "logical_cores": "many"}, "emulated": "yes", "device": ["x"]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_anybody_wrote_gives_no_facts_and_no_crash(stored):
    found = machine(replace(fleet(TRUTH), plan={"targets": stored}), "pi")

    assert (found.environment, found.emulated, found.profile) == (None, False, None)


def test_a_run_without_a_plan_has_the_machines_of_its_study():
    assert list(machines(replace(fleet(TRUTH), plan={}))) == ["local", "pi", "board", ENVELOPE]
