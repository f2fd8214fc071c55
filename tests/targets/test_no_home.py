"""A user id without a home: what is missing is said, with the way out."""

from __future__ import annotations

import pytest

from profiler.errors import TargetError
from profiler.targets import config


def test_the_list_of_targets_without_a_home(monkeypatch, tmp_path):
    """As in a container that is started with a bare user id and an empty environment."""

    def homeless(*_: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    for name in ("EDGEPROF_TARGETS", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config.Path, "home", classmethod(homeless))
    with pytest.raises(TargetError, match=r"no home.*EDGEPROF_TARGETS"):
        config.load()
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "none.toml"))
    assert config.load() == {}
