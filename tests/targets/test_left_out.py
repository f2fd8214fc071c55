"""What does not travel to a device: what its wheels hold beside what a worker needs, and runtimes that have none for it."""

from __future__ import annotations

import tarfile

import pytest

from profiler.errors import TargetError
from profiler.targets import bundle, setup

JETSON = bundle.Device((3, 10), "aarch64", (2, 35), {})


@pytest.fixture
def resolved(monkeypatch):
    """`resolved(*names)`: pip brings files of these names."""

    def make(*names):
        def write(_, __, site):
            for name in names:
                path = site / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(name)

        monkeypatch.setattr(bundle, "_resolve", write)

    return make


def test_a_device_reports_to_nobody(resolved, tmp_path):
    resolved(
        "openvino/__init__.py", "openvino/tools/ovc/telemetry_stub.py", "openvino-2026.4.1.dist-info/METADATA",
        "openvino_telemetry/__init__.py", "openvino_telemetry/backend/backend_ga4.py",
        "openvino_telemetry-2025.2.0.dist-info/METADATA",
    )  # fmt: skip
    made = bundle.wheels(JETSON, ["openvino"], tmp_path / "cache")
    with tarfile.open(made.archive) as archive:
        names = archive.getnames()
    # The stub that OpenVINO takes in its place must stay.
    assert names == [
        "openvino-2026.4.1.dist-info/METADATA", "openvino/__init__.py", "openvino/tools/ovc/telemetry_stub.py",
    ]  # fmt: skip
    assert made.packages == {"openvino": "2026.4.1"}


def test_a_bundle_made_by_other_rules_is_not_taken_from_the_cache(resolved, tmp_path, monkeypatch):
    resolved("numpy/__init__.py", "numpy/tests/test_all.py")
    before = bundle.wheels(JETSON, ["numpy"], tmp_path / "cache")
    monkeypatch.setattr(bundle, "_LEFT_OUT", bundle.re.compile("never"))
    after = bundle.wheels(JETSON, ["numpy"], tmp_path / "cache")
    assert before.name != after.name
    with tarfile.open(after.archive) as archive:
        assert "numpy/tests/test_all.py" in archive.getnames()


class TestRuntimesWithoutWheels:
    @pytest.fixture
    def registry(self, monkeypatch):
        """`registry(*missing)`: no wheel of these; the list of what was asked for comes back."""
        asked = []

        def make(*missing):
            def wheels(_, packages, __):
                asked.append([name for name in packages if name in bundle.RUNTIMES.values()])
                for name in missing:
                    if name in packages:
                        raise TargetError(f"no wheels of {name}.")
                return bundle.Bundle("wheels-0", "a.tar.gz", "0", dict.fromkeys(packages, "1"))

            monkeypatch.setattr(bundle, "wheels", wheels)
            return asked

        return make

    def test_all_of_them_are_one_bundle(self, registry, tmp_path):
        asked = registry()
        made, left_out = setup._wheels(JETSON, None, tmp_path)
        assert asked == [["onnxruntime", "openvino"]]
        assert not left_out
        assert {"numpy", "psutil", "onnxruntime", "openvino"} == set(made.packages)

    def test_one_that_has_none_is_told_and_the_other_goes(self, registry, tmp_path):
        registry("openvino")
        made, left_out = setup._wheels(JETSON, None, tmp_path)
        assert left_out == {"ov": "no wheels of openvino."}
        assert "onnxruntime" in made.packages
        assert "openvino" not in made.packages

    def test_one_that_was_asked_for_is_not_left_out(self, registry, tmp_path):
        registry("openvino")
        with pytest.raises(TargetError, match="openvino"):
            setup._wheels(JETSON, ["ort", "ov"], tmp_path)

    def test_none_at_all_is_an_error(self, registry, tmp_path):
        registry("onnxruntime", "openvino")
        with pytest.raises(TargetError, match="onnxruntime"):
            setup._wheels(JETSON, None, tmp_path)
