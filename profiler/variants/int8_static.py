"""int8 weights and activations with ranges from calibration rows, as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from profiler.data.feeding import rows_fed
from profiler.errors import VariantError
from profiler.onnx_io import clone, count_ops, opset_of, write_model
from profiler.variants.base import Calibration, Fact, Recipe, VariantResult, expect
from profiler.variants.calibration import Range, activation_ranges, clip_weights, drawn
from profiler.variants.equalise import equalise
from profiler.variants.folding import FOLDED, about_weights, folds, read_in_bodies, stored_floats
from profiler.variants.openvino_judge import judge_openvino
from profiler.variants.operands import (
    channel_axis,
    fold_betas,
    give_chain_biases,
    separate,
    vector_biases,
    wake_biases,
    whole_tensors,
)
from profiler.variants.placement import bypass
from profiler.variants.preparing import (
    QDQ_OPSET,
    constant_names,
    dequantized_nodes,
    judged,
    prepare,
    quiet,
    sort_nodes,
    tally,
    unchanged,
)
from profiler.variants.repair import correct_biases, give_biases
from profiler.variants.running import batches, ensure_runs, runtime_errors, scratch, session, short
from profiler.variants.selection import named_by, resolve
from profiler.variants.smoothing import smooth
from profiler.variants.taken_names import with_free_names

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Ops that multiply by stored weights: all the gain is there. Asked for by default except ConvTranspose."""
CARRIED = ("Clip", "MaxPool", "Relu", "Reshape", "Transpose")
"""Ops between them that work on int8 as it is, at the same scale: quantized only where their input is already."""
QUANTIZER_ERRORS = (AssertionError, NotImplementedError, ValueError)
"""What ONNX Runtime's quantizer raises for values that have no scale (NaN, none at all) and for types that it does not know."""
MOST_REFUSED = 8
"""Nodes that are given back to float one after the other because the runtime refuses them, before the file is given up."""
BIAS_ROWS = 32
"""Most rows that bias correction runs, once per layer: means settle long before ranges do."""


@dataclass(frozen=True)
class Plan:
    """What one calibration found out; any choice of nodes can be quantized from it."""

    prepared: ModelProto
    """The float model that the quantizer works on: same answers as the original."""
    nodes: tuple[str, ...]
    """Names of the nodes that may be quantized."""
    ranges: Mapping[str, Range]
    """Lowest and highest value by tensor."""
    rows: int
    facts: Mapping[str, Fact]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Int8Static(Recipe):
    """Static int8: U8 activations (S8 when symmetric) and S8 weights, QDQ form, which ONNX Runtime and OpenVINO both run.

    By default only ops with stored weights are quantized, and ops that pass int8 through. Quantizing every op the
    library can destroys real models: magika fell from 95 to 11 % correct, a MiniLM classifier from 78 to 64 %.
    """

    name: ClassVar[str] = "int8-static"
    needs_calibration: ClassVar[bool] = True
    opset: ClassVar[int] = QDQ_OPSET
    """Older models are raised to it; see `_needs_opset`."""
    carried: ClassVar[tuple[str, ...]] = CARRIED

    calibration: Literal["minmax", "entropy", "percentile", "mse"] = "minmax"
    per_channel: bool = False
    op_types: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    symmetric_activations: bool = False
    """S8 activations with zero point 0, which TensorRT asks for; it also wants quantize_bias=false."""
    quantize_bias: bool = True
    reduce_range: bool = False
    """7-bit weights: on x86 without VNNI, sums of two products can saturate 16 bits."""
    percentile: float = 99.999
    samples: int = 256
    """Most calibration rows that are run."""
    seed: int = 0
    """Which calibration rows are run: 0 the first ones, any other number a draw with replacement of its own."""
    weight_range: Literal["minmax", "mse"] = "minmax"
    """How far weights reach: to the largest, or to where rounding and clipping together err least."""
    skip: tuple[str, ...] = ()
    """Nodes that stay float, by name in the prepared model or as `Conv:12` (the 13th Conv)."""
    only: tuple[str, ...] = ()
    """The only nodes of `op_types` that are quantized, named likewise."""
    float_outputs: tuple[str, ...] = ()
    """Op types whose output stays float unless a quantized op reads it: MatMul|Gemm suits transformers. Float readers of a
    value that is float anyway then read it unrounded.
    """
    bias_correction: bool = False
    equalise: bool = False
    smooth: float = 0.0
    """SmoothQuant's alpha for inputs of MatMul and Gemm; 0 is off."""

    def __post_init__(self) -> None:
        """Check the options; raises StudyError."""
        expect(self, "percentile", 50 < self.percentile <= 100, "a number above 50, up to 100")
        expect(self, "samples", self.samples >= 1, "at least 1")
        expect(self, "seed", self.seed >= 0, "0 or more")
        expect(self, "smooth", 0 <= self.smooth <= 1, "a number from 0 (off) to 1")
        fits = self.calibration == "percentile" or self.percentile == type(self).percentile
        expect(self, "percentile", fits, "calibration=percentile beside it")

    def apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        """Quantize; raises VariantError without calibration rows or when no runtime loads the result, StudyError when a
        node of `skip` or `only` does not exist.
        """
        with runtime_errors(self.text):
            return self._apply(model, calibration)

    def _apply(self, model: ModelProto, calibration: Calibration | None) -> VariantResult:
        plan = self.plan(model, calibration)
        if isinstance(plan, str):
            return unchanged(model, plan)
        assert calibration is not None
        notes = list(plan.notes)
        result, refused = self._loadable(plan, calibration, notes)
        done, counts = dequantized_nodes(result, {*self.op_types, *WEIGHTED}), count_ops(result)
        if not counts["DequantizeLinear"]:
            return unchanged(model, "the quantizer left every op as it was")
        left = sum(counts[op] for op in self.op_types) - sum(node.op_type in self.op_types for node in done)
        facts: dict[str, Fact] = {
            "ops_quantized": len(done), "ops_left_float": left, "quantized": tally(done), "calibration_rows": plan.rows,
            "opset": opset_of(result), **plan.facts,
        }  # fmt: skip
        if refused:
            facts["refused_in_int8"] = "|".join(refused)
        if self.bias_correction:
            facts["biases_corrected"] = correct_biases(
                plan.prepared, result, plan.nodes, lambda: self._rows(plan.prepared, calibration, BIAS_ROWS)
            )
        wake_biases(result, plan.nodes)
        notes += ensure_runs(model, result, calibration, self.text)
        if left:
            notes.append(
                f"{left} ops of the chosen types stay float: no stored weights, "
                f"{'named to, ' if self.skip or self.only else ''}or inside a subgraph."
            )
        judged(model, result, calibration, facts, notes)
        if len({node.name for node in result.graph.node if node.op_type in ("Gemm", "MatMul")}) > 1:
            judge_openvino(model, result, calibration, facts, notes)
        return VariantResult(result, facts, tuple(notes), changed=True)

    def _loadable(self, plan: Plan, calibration: Calibration, notes: list[str]) -> tuple[ModelProto, list[str]]:
        """The quantized model, and the nodes left in float because the runtime refuses or fails at them in int8.

        The runtime's message only says where to look first: what decides is whether the file runs without the node.
        """
        refused: list[str] = []
        wanted = list(plan.nodes)
        while True:
            attempt = list(notes)
            result = self.realise(plan, attempt, None if not refused else wanted)
            doing = "load"
            try:
                with scratch() as folder:
                    runner = session(write_model(result, folder))
                    doing = "run"
                    for feeds in self._rows(plan.prepared, calibration, 1):
                        runner.run(None, dict(feeds))
            except Exception as error:
                named = named_by(str(error), plan.prepared, wanted)
                if named is None or len(refused) == MOST_REFUSED:
                    raise VariantError(
                        f"{self.text} was written, but ONNX Runtime cannot {doing} it: {short(error)}."
                    ) from error
                refused.append(named)
                wanted.remove(named)
                if not wanted:
                    raise VariantError(
                        f"{self.text}: ONNX Runtime runs no op of it in int8: {short(error)}."
                    ) from error
                continue
            notes[:] = attempt
            if refused:
                notes.append(f"{', '.join(refused)} stay float: ONNX Runtime refuses the file with them in int8.")
            return result, refused

    def plan(self, model: ModelProto, calibration: Calibration | None) -> Plan | str:
        """Prepare, choose and calibrate: everything but the quantization itself. A text says why nothing fits the recipe."""
        if not calibration:
            raise VariantError(f"{self.text} needs calibration data: give --data or --calibration.")
        if not any(count_ops(model)[op] for op in self.op_types):
            return f"the model has no {', '.join(self.op_types)}"
        prepared, notes = prepare(model, calibration, opset=self.opset)
        if (way_out := self._needs_opset()) is not None and opset_of(prepared) < self.opset:
            raise VariantError(
                f"{self.text} needs opset {self.opset}, the model has {opset_of(prepared)}: {notes[0]}. "
                f"Export the model again with a newer opset{way_out}."
            )
        fold_betas(prepared)
        chosen = self._choose(prepared)
        if not any(node.op_type in self.op_types for node in chosen):
            return (
                f"no {', '.join(self.op_types)} of the main graph has stored float32 weights"
                f"{about_weights(prepared, self.op_types)}{self._about_names()}"
            )
        names = {node.name for node in chosen}
        separate(prepared, names)
        vector_biases(prepared, names)
        chosen = [node for node in prepared.graph.node if node.name in names]
        facts = self._rewrite(prepared, calibration, chosen, notes)
        self._chains(prepared, names)
        chosen = [node for node in prepared.graph.node if node.name in names]
        ranges, rows = self._calibrate(prepared, calibration, chosen)
        if self.weight_range == "mse":
            self._clip(prepared, chosen)
        return Plan(prepared, tuple(node.name for node in chosen), ranges, rows, facts, tuple(notes))

    def realise(self, plan: Plan, notes: list[str], nodes: Iterable[str] | None = None) -> ModelProto:
        """The quantized model of a plan, with only `nodes` (and ops that pass int8 through) when they are given."""
        wanted = None if nodes is None else set(nodes)
        places = {node.name: node for node in plan.prepared.graph.node}
        chosen = [
            places[name]
            for name in plan.nodes
            if wanted is None or name in wanted or places[name].op_type not in self.op_types
        ]
        return self._quantize(plan.prepared, chosen, plan.ranges, notes)

    def _needs_opset(self) -> str | None:
        """What else may be done where the model cannot be raised to `opset`; None when it is good enough as it is."""
        return ", or use per_channel=false" if self.per_channel else None

    def _about_names(self) -> str:
        return " and may be quantized by skip and only" if self.skip or self.only else ""

    def _choose(self, model: ModelProto) -> list[NodeProto]:
        """Nodes to quantize: of weighted types only those with a stored weight, because products of two activations
        (attention) lose much and gain little.
        """
        weights = stored_floats(model)
        types = {*self.op_types, *self.carried}
        skip, only = resolve(model, self.skip, "skip"), resolve(model, self.only, "only")
        captured = read_in_bodies(model)
        return [
            node
            for node in model.graph.node
            if node.op_type in types
            and node.domain in ("", "ai.onnx")
            and (node.op_type not in WEIGHTED or weights & {*node.input[1:2], *node.input[:1]})
            and (node.op_type not in FOLDED or folds(node, model, captured))
            and node.name not in skip
            and (not only or node.name in only or node.op_type not in self.op_types)
        ]

    def _chains(self, model: ModelProto, names: set[str]) -> None:
        """Biases for chained products, where turning a MatMul into a Gemm is no other recipe than the one asked for."""
        asked = {op in self.op_types for op in ("Gemm", "MatMul")} == {True}
        alike = len({op in self.float_outputs for op in ("Gemm", "MatMul")}) == 1
        if asked and alike and self.quantize_bias:
            give_chain_biases(model, names)

    def _rewrite(
        self, model: ModelProto, calibration: Calibration, chosen: list[NodeProto], notes: list[str]
    ) -> dict[str, Fact]:
        """Move scales between layers and give biases a place, in place, before ranges are taken; float answers stay."""
        facts: dict[str, Fact] = {}
        if self.equalise:
            pairs, clipped = equalise(model)
            facts["pairs_equalised"] = pairs
            if clipped:
                notes.append(
                    f"{clipped} pairs of convolutions were not equalised: the Clip (Relu6) between them does not pass a "
                    "factor through."
                )
            if not pairs:
                notes.append("nothing was equalised: no convolution feeds only another one.")
        if self.smooth:
            names = [node.name for node in chosen]
            folded, inserted = smooth(model, self.smooth, lambda: self._rows(model, calibration), names)
            facts["activations_smoothed"] = folded + inserted
            if inserted:
                notes.append(f"{inserted} Mul were added: other ops read the smoothed activations too.")
            if not folded + inserted:
                notes.append(
                    "nothing was smoothed: no product with stored weights follows a normalization or a linear op."
                )
        if self.bias_correction:
            give_biases(model, chosen)
        return facts

    def _clip(self, model: ModelProto, chosen: list[NodeProto]) -> None:
        """Clip stored weights that only one node reads, in place, to the range of least error."""
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        uses = [name for node in model.graph.node for name in node.input]
        levels = 64 if self.reduce_range else 127
        for node in chosen:
            tensor = stored.get(node.input[1]) if node.op_type in WEIGHTED and len(node.input) > 1 else None
            if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or uses.count(tensor.name) > 1:
                continue
            axis = channel_axis(node, len(tensor.dims)) if self.per_channel else None
            tensor.CopyFrom(
                numpy_helper.from_array(clip_weights(numpy_helper.to_array(tensor), axis, levels), tensor.name)
            )

    def _rows(
        self, model: ModelProto, calibration: Calibration, limit: int | None = None
    ) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Batches of the calibration rows that `seed` draws, at most `limit` and `samples` rows."""
        most = self.samples if limit is None else min(limit, self.samples)
        return batches(model, drawn(calibration, self.seed), most)

    def _calibrate(
        self, model: ModelProto, calibration: Calibration, chosen: list[NodeProto]
    ) -> tuple[dict[str, Range], int]:
        constants = constant_names(model)
        outputs = {value.name for value in model.graph.output}
        names = {name for node in chosen for name in (*node.input, *node.output) if name and name not in constants}
        watched = clone(model)
        # ONNX Runtime fills in the type of an output that is only named.
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - outputs))
        rows = 0

        def feeds() -> Iterator[Mapping[str, NDArray[Any]]]:
            nonlocal rows
            rows = 0
            for batch in self._rows(model, calibration):
                rows += rows_fed(calibration, batch)
                yield batch

        with scratch() as folder:
            runner = session(write_model(watched, folder))
            float_names = [
                out.name for out in runner.get_outputs() if out.type == "tensor(float)" and out.name in names
            ]
            float_inputs = [
                put.name for put in runner.get_inputs() if put.type == "tensor(float)" and put.name in names
            ]

            def run(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
                found = dict(zip(float_names, runner.run(float_names, dict(batch)), strict=True)) if float_names else {}
                return {**found, **{name: batch[name] for name in float_inputs}}

            with runtime_errors(f"{self.text}: a calibration row fails in the model"):
                found = activation_ranges(
                    run, feeds, self.calibration, self.percentile, symmetric=self.symmetric_activations
                )
            return found, rows

    def _quantize(
        self, prepared: ModelProto, chosen: list[NodeProto], ranges: Mapping[str, Range], notes: list[str]
    ) -> ModelProto:
        options: dict[str, Any] = {
            "ActivationSymmetric": self.symmetric_activations,
            "WeightSymmetric": True,
            "QuantizeBias": self.quantize_bias,
            "OpTypesToExcludeOutputQuantization": list(self.float_outputs),
        }
        try:
            return self._run_quantizer(prepared, chosen, ranges, options)
        except QUANTIZER_ERRORS as error:
            # https://github.com/microsoft/onnxruntime/issues/24815: adjusting weights to a tiny bias scale fails for biases
            # of unusual shape. Without the adjustment it works; it is not the default because dead channels need it.
            notes.append(
                f"weights were not adjusted to bias scales, which ONNX Runtime failed at ({short(error, 120)})"
            )
            try:
                options["QDQDisableWeightAdjustForInt32Bias"] = True
                return self._run_quantizer(prepared, chosen, ranges, options)
            except QUANTIZER_ERRORS as second:
                raise VariantError(f"{self.text}: ONNX Runtime's quantizer failed: {short(second)}.") from second

    def _run_quantizer(
        self, prepared: ModelProto, chosen: list[NodeProto], ranges: Mapping[str, Range], options: dict[str, Any]
    ) -> ModelProto:
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        # Nodes whose activations never appeared have no range and stay float.
        usable = [node for node in chosen if all(name in ranges for name in self._ranged(node, prepared))]

        def quantize(work: ModelProto, renamed: Mapping[str, str]) -> ModelProto:
            data = {
                renamed.get(name, name): TensorData(lowest=np.float32(low), highest=np.float32(high))
                for name, (low, high) in ranges.items()
            }
            whole = {
                "TensorQuantOverrides": whole_tensors(work, {node.name for node in usable}) if self.per_channel else {}
            }
            floats = clone(work)
            with quiet():
                quantizer = QDQQuantizer(
                    work,
                    self.per_channel,
                    self.reduce_range,
                    QuantType.QInt8,
                    QuantType.QInt8 if self.symmetric_activations else QuantType.QUInt8,
                    TensorsData(CalibrationMethod.MinMax, data),
                    [node.name for node in usable],
                    [],
                    [*self.op_types, *self.carried],
                    {**options, **whole},
                )
                quantizer.quantize_model()
            made: ModelProto = quantizer.model.model
            self._finish(made, floats)
            return made

        result = with_free_names(prepared, quantize)
        if self.float_outputs:
            bypass(result, {node.name for node in usable}, self.float_outputs)
        sort_nodes(result.graph)
        return result

    def _finish(self, model: ModelProto, floats: ModelProto) -> None:
        """What a derived recipe does to the quantized `model`, in place, while its names still tell where they come from."""

    @staticmethod
    def _ranged(node: NodeProto, model: ModelProto) -> list[str]:
        """Tensors of a weighted node that need a range: its activations in and out."""
        if node.op_type not in WEIGHTED:
            return []
        constants = {tensor.name for tensor in model.graph.initializer}
        return [name for name in (*node.input[:2], node.output[0]) if name not in constants]
