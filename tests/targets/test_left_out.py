"""What does not travel to a device although its wheels hold it."""

from __future__ import annotations

import tarfile

import pytest

from profiler.targets import bundle

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
