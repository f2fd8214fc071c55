"""The example of docs/data.md is a metric that works, and does what the page says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from profiler.quality.metrics import get_metric
from profiler.quality.reading import choose

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's code as the file that it names."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "my_metrics.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_metrics", None)


@pytest.mark.usefixtures("example")
def test_the_example_measures_what_it_says():
    """A box whose centre is 3 and 4 pixels off is 5 off; one that is 12 off is missed."""
    outputs = {"boxes": np.array([[1.0, 1, 5, 5], [0, 0, 2, 2]]), "scores": np.zeros((2, 2))}
    labels = np.array([[6.0, 7.0], [1.0, 13.0]])
    error = choose("my_metrics:centre_error", labels, outputs).reduced(outputs, labels, outputs)
    missed = choose("my_metrics:centre_missed", labels, outputs).reduced(outputs, labels, outputs)

    assert error["per_sample"].tolist() == [5.0, 12.0]
    assert (error["metric_unit"], error["higher_is_better"]) == ("native", False)
    assert missed["per_sample"].tolist() == [0.0, 1.0]
    assert (missed["metric_unit"], missed["higher_is_better"]) == ("proportion", False)
    assert get_metric("my_metrics:centre_missed").needs_labels


def test_the_page_names_every_metric():
    """A metric that is added is told there."""
    from profiler.quality.metrics import METRICS

    (listed,) = re.findall(r"`--metric ([a-z0-9|-]+)`", PAGE.read_text(encoding="utf-8"))
    assert set(listed.split("|")) == set(METRICS)
