"""How much of an error inside the network arrives at its outputs.

Layers damp or amplify: the same relative error costs more in some places. Each weight is disturbed a little, alone, and the
error at the model's outputs is compared with the error right behind the weight, both as shares of the variance there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from profiler.onnx_io import clone
from profiler.pruning.axes import Axes, Use
from profiler.pruning.observe import Feeds, Open, watched

DISTURBANCE = 0.05
"""Standard deviation of the disturbance, as a share of the weight's own root mean square: small enough to stay linear."""


def sensitivities(axes: Axes, uses: Sequence[Use], open_model: Open, feeds: Iterable[Feeds]) -> dict[Use, float]:
    """Relative squared error at the outputs per relative squared error behind each use; 1 where it cannot be seen."""
    rows = list(feeds)
    behind = {use: axes.view.nodes[use.node].output[0] for use in uses}
    outputs = axes.view.outputs
    names = list(dict.fromkeys([*outputs, *behind.values()]))
    plain = open_model(watched(axes.view.model, names))
    reference = [dict(zip(names, plain.run(names, row), strict=True)) for row in rows]
    found: dict[Use, float] = {}
    for use in uses:
        changed = clone(axes.view.model)
        tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == use.weight)
        weight = numpy_helper.to_array(tensor)
        rng = np.random.default_rng([use.node, weight.size])
        scale = DISTURBANCE * float(np.sqrt(np.square(weight.astype(np.float64)).mean()))
        noisy = (weight + scale * rng.standard_normal(weight.shape)).astype(weight.dtype)
        tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
        asked = list(dict.fromkeys([*outputs, behind[use]]))
        runner = open_model(watched(changed, asked))
        seen = [dict(zip(asked, runner.run(asked, row), strict=True)) for row in rows]
        here = _share([row[behind[use]] for row in reference], [row[behind[use]] for row in seen])
        there = [_share([row[name] for row in reference], [row[name] for row in seen]) for name in outputs]
        arrived = max((value for value in there if value is not None), default=None)
        found[use] = 1.0 if not here or arrived is None else arrived / here
    return found


def _share(reference: Sequence[NDArray[np.generic]], seen: Sequence[NDArray[np.generic]]) -> float | None:
    """Squared difference as a share of the reference's variance over rows; None when it is constant or not numeric."""
    if any(array.dtype.kind != "f" for array in reference):
        return None
    before = np.concatenate([array.astype(np.float64).reshape(-1) for array in reference])
    after = np.concatenate([array.astype(np.float64).reshape(-1) for array in seen])
    whole = float(np.square(before - before.mean()).sum())
    share = float(np.square(after - before).sum()) / whole if whole > 0 else np.nan
    return share if np.isfinite(share) else None
