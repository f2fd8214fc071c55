"""`class:…`: which device stands for a class, and that it stays that one."""

from __future__ import annotations

import pytest

from profiler.errors import StudyError, TargetError
from profiler.fleet.classes import settled
from profiler.fleet.devices import lease_name
from profiler.store import open_store
from profiler.study import make_study
from profiler.targets import conditions, config


class Notes:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    for name, device, emulated in (
        ("a", "raspberry-pi-5-8gb", False), ("b", "raspberry-pi-5-8gb", False), ("c", "raspberry-pi-4-4gb", False),
        ("d", "nvidia-t4", False), ("e", "raspberry-pi-4-4gb", True), ("f", None, False),
    ):  # fmt: skip
        config.save(config.TargetSpec(name, ("true",), device=device, emulated=emulated))
    store = open_store(tmp_path / "out")
    yield store
    store.close()


def settle(store, *targets, away=(), asked=None, **settings):
    def place(name):
        if asked is not None:
            asked.append(name)
        if name in away:
            raise TargetError(f"'{name}' is away.")

    notes = Notes()
    study = make_study(model="m.onnx", targets=targets, **settings)
    return settled(study, store, notes, place), notes.notes


def test_the_first_that_answers_stands_for_its_class(store):
    """In the order of the list, under the conditions that were asked for."""
    study, notes = settle(store, "class:raspberry-pi-5-8gb{cores=0|1}", away=("a",))
    assert study.targets == ("b{cores=0|1}",)
    assert notes == ["'class:raspberry-pi-5-8gb' is b in this run."]


def test_a_class_is_one_device_under_whatever_conditions(store):
    """Power modes of a class are compared on one device."""
    study, _ = settle(store, "class:edge{power=15W}", "class:edge{power=30W}", "local")
    assert study.targets == ("a{power=15W}", "a{power=30W}", "local")


def test_several_classes_are_several_devices(store):
    """And none that is named otherwise."""
    study, _ = settle(store, "a", "class:raspberry-pi-5-8gb", "class:edge")
    assert study.targets == ("a", "b", "c")
    with pytest.raises(StudyError, match="is named otherwise in this study"):
        settle(store, "a", "b", "class:raspberry-pi-5-8gb")


def test_a_free_one_comes_before_a_busy_one_which_is_not_asked(store):
    """Asking starts a process there, beside somebody's measurement."""
    asked = []
    store.acquire(lease_name("a"), run_id="another")
    assert settle(store, "class:raspberry-pi-5-8gb", asked=asked)[0].targets == ("b",)
    store.acquire(lease_name("b"), run_id="another")
    study, notes = settle(store, "class:raspberry-pi-5-8gb", asked=asked)
    assert (study.targets, asked) == (("a",), ["b"])
    assert "it is busy, as 2 of 2 are" in notes[0]


def test_one_whose_holder_has_ended_is_free(store, monkeypatch):
    """A run that was killed keeps nobody waiting."""
    store.acquire(lease_name("a"), run_id="another")
    monkeypatch.setattr("profiler.leases.has_ended", lambda owner: True)
    assert settle(store, "class:raspberry-pi-5-8gb")[0].targets == ("a",)


def test_what_cannot_be_is_told(store):
    """No such class, with those that there are; none that answers, with the reasons."""
    with pytest.raises(
        StudyError, match=r"no target is of the class 'laptop'; those of your targets: edge, gpu, nvidia-t4"
    ):
        settle(store, "class:laptop")
    with pytest.raises(TargetError, match=r"no target of 'class:gpu' answers: 'd' is away"):
        settle(store, "class:gpu", away=("d",))


def test_a_declared_price_follows_its_device(store):
    study, _ = settle(store, "class:gpu", cost={"machine": "class:gpu=aws:g4dn.xlarge"})
    assert study.cost.machine == "d=aws:g4dn.xlarge"
    study, _ = settle(store, "class:gpu", cost={"machine": "aws:g4dn.xlarge"})
    assert study.cost.machine == "aws:g4dn.xlarge"


def test_without_classes_the_study_is_as_it_was(store):
    study = make_study(model="m.onnx", targets=("local", "a"))
    assert settled(study, store, Notes()) is study


def test_only_a_class_has_something_after_a_colon():
    assert conditions.parse("class:edge{cpus=1}")[0] == "class:edge"
    with pytest.raises(StudyError, match="a target has no device after a colon"):
        conditions.parse("jetson:edge")
