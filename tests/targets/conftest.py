"""What tests of whole runs beside a target that lies share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from profiler import wire
from profiler.targets import bundle, config, process

EVIL = Path(__file__).with_name("evil.py")


@pytest.fixture
def study_of(tmp_path, monkeypatch, fake_study):
    """`study_of(lie)`: this machine and a target that lies so, both in one study."""
    monkeypatch.setattr(process, "_GRACE_S", 0.3)
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))

    def make(lie: dict, **settings):
        text = json.dumps({"protocol": wire.PROTOCOL, **lie})
        config.save(
            config.TargetSpec(
                "evil",
                (sys.executable, "-I", "-S", str(EVIL), text),
                link_codes=(255,),
                bundles=(bundle.modules_name(), "w"),
            )
        )
        effort = {
            "processes": 1,
            "rounds": 1,
            "block_s": 0.001,
            "block_samples": 3,
            "warmup_s": 0.001,
            "warmup_max_s": 0.002,
        }
        return fake_study(targets=("local", "evil"), effort=effort, limit=4, **settings)

    return make
