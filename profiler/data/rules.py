"""From a study and a model's inputs to how they are fed; what cannot be told is asked, with a command that says it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from backends.base import TensorInfo, format_shape
from profiler.data.dataset import Array
from profiler.data.feeding import Feeding, InputRule, check_size, numeric, text_of
from profiler.errors import StudyError, unknown
from profiler.repeat import study_command
from profiler.study import InputOptions, Study

_SAMPLE_RATE = re.compile(r"(^|_)(sr|fs|sample_?rate|sampling_?rate)(_|$)", re.IGNORECASE)
_CARRIED = re.compile(
    r"(^|[_.])(in|out|input|output|new|next|old|prev|previous|past|present|n|t|init|initial|final)(?=$|[_.])",
    re.IGNORECASE,
)

_NOT_FED = {
    "object": "text",
    "sequence": "a sequence",
    "sparse_tensor": "a sparse tensor",
    "map": "a map",
    "optional": "an option",
}
Asked = dict[str, dict[str, object]]
"""Options by input."""


def decide(study: Study, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> Feeding:
    """How the model is fed: as declared, else as the model says. Raises StudyError for what it leaves open.

    An open first axis is the batch. A fixed first axis beside open ones is not, and several fixed ones of different sizes
    cannot all be: rows fed there would be answered, but wrongly. A symbol is one size in the whole model, so an axis with
    the symbol of another input's batch is the batch.
    """
    declared = read_rules(study.inputs, inputs, outputs)
    rules: list[InputRule] = []
    notes: list[str] = []
    unclear: Asked = {}
    for info in inputs:
        rule = declared.get(info.name)
        if rule is None:
            rule, note, asked = _of_model(info, inputs, declared)
            notes += note
            if asked:
                unclear[info.name] = asked
        rules.append(rule)
    unclear |= _fixed_apart(study, rules, outputs)
    if unclear:
        raise StudyError(_question(study, rules, unclear))
    likely = {
        rule.name: found
        for rule in rules
        if not rule.declared and len(inputs) > 1 and (found := carried_output(rule.info, outputs)) is not None
    }
    for rule in rules:
        if rule.name in likely and rule.role == "rows" and (rule.axis or isinstance(rule.info.shape[0], int)):
            notes.append(
                f"input '{rule.name}' has the shape and name of output '{likely[rule.name]}': each row is fed with its own "
                f"value; to carry it over a sequence: --input '{text_of(rule.name, {'from': likely[rule.name]})}'"
            )
    return Feeding(tuple(rules), _output_axes(rules, outputs), tuple(notes), likely)


def complete(study: Study, feeding: Feeding, data_given: bool) -> Feeding:
    """The same with a value for every constant. Without data, what the data would give is random.

    Raises StudyError for one that nobody gave, and for an input that cannot be fed at all.
    """
    refuse_what_is_not_fed(feeding)
    missing = [rule for rule in feeding.rules if rule.role == "constant" and rule.value is None]
    asked: Asked = {rule.name: {"value": _guess(rule.info)} for rule in missing if data_given or not rule.declared}
    if asked:
        name = next(iter(asked))
        info = next(rule.info for rule in missing if rule.name == name)
        what = "takes one value for all rows" if not info.shape else "is the same for all rows"
        raise StudyError(
            f"input '{name}' ({info.dtype} {format_shape(info.shape)}) {what}, and nothing says which: put an array '{name}' of "
            f"that shape into the data, or say it with the value that the model is used with: {command(study, asked)}"
        )
    random = np.random.default_rng(study.seed)
    made = {rule.name: random_values(rule.name, _closed(rule.info), rule.info.dtype, random) for rule in missing}
    return feeding.with_constants(made)


def refuse_what_is_not_fed(feeding: Feeding) -> None:
    """Raise StudyError for an input of another kind than tensors of numbers; no data could help."""
    for rule in feeding.rules:
        if rule.info.dtype in _NOT_FED:
            raise StudyError(
                f"input '{rule.name}' takes {_NOT_FED[rule.info.dtype]}, which edgeprof does not feed: export the model without "
                "that step, so that its inputs are tensors of numbers (token ids in place of text)."
            )


def random_values(name: str, shape: Sequence[int], dtype_name: str, random: np.random.Generator) -> Array:
    """Random numbers that a model takes as input. Raises StudyError, before anything is made, when they would be too many."""
    dtype = np.dtype(dtype_name)
    # Drawn as float64, or as int64.
    check_size(name, shape, np.dtype(np.float64) if dtype.itemsize < 8 else dtype)
    if dtype.kind == "f":
        return random.standard_normal(tuple(shape)).astype(dtype)
    # Small whole numbers are valid as token ids, masks and flags alike.
    return random.integers(0, 2, tuple(shape)).astype(dtype)


def command(study: Study, more: Mapping[str, Mapping[str, object]], batch: int | None = None) -> str:
    """The command that asks the same as the study, with these inputs declared too."""
    declared = {name: InputOptions.model_validate(options) for name, options in more.items()}
    changed: dict[str, object] = {"inputs": {**study.inputs, **declared}}
    if batch is not None:
        changed["batches"] = (batch,)
    return study_command(study.model_copy(update=changed), place=True)


def _of_model(
    info: TensorInfo, inputs: Sequence[TensorInfo], declared: Mapping[str, InputRule]
) -> tuple[InputRule, list[str], dict[str, object]]:
    """The rule that the model gives an input, with a note, or what is to be asked."""
    if not info.shape:
        return (InputRule(info, "constant", None) if numeric(info) else InputRule(info)), [], {}
    first = info.shape[0]
    shared = _shared_axis(info, inputs, declared)
    if shared is None:
        return InputRule(info), [], {}
    if isinstance(first, int):
        shape = format_shape(info.shape)
        note = f"input '{info.name}' is {shape}: its rows lie on axis {shared}, which is '{info.shape[shared]}' too"
        return InputRule(info, axis=shared), [note], {}
    if first in _batch_symbols(info, inputs, declared):
        return InputRule(info), [], {}
    return InputRule(info), [], {"batch_axis": shared}


def _fixed_apart(study: Study, rules: Sequence[InputRule], outputs: Sequence[TensorInfo]) -> Asked:
    """Undeclared inputs whose fixed first axis cannot be the batch: not that of the others, or not the size that is asked for
    while an axis behind it has the symbol of an output's rows.
    """
    fed = [rule for rule in rules if rule.role != "constant"]
    sizes = [rule.size for rule in fed if rule.size is not None]
    if not sizes:
        return {}
    fixed = {rule.size for rule in fed if rule.declared and rule.size is not None}
    open_too = len(sizes) < len(fed)
    base = next(iter(fixed), None) if fixed else (None if open_too else sizes[0])
    found: Asked = {}
    for rule in fed:
        if rule.declared or rule.size is None:
            continue
        if rule.size == base:
            behind = _axis_of_output_rows(rule.info, outputs)
            if behind is not None and study.batches != (base,):
                found[rule.name] = {"batch_axis": behind}
            continue
        # One row a batch is one row, whatever axis of size 1 it lies on.
        if base is None and rule.size == 1 and study.batches == (1,):
            continue
        shape = rule.info.shape
        if base is None:
            axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        else:
            axes = [axis for axis, size in enumerate(shape) if size == base]
        if len(axes) != 1:
            found[rule.name] = {"value": "data"}
        elif study.data is None and (source := carried_output(rule.info, outputs)) is not None:
            found[rule.name] = {"batch_axis": axes[0], "from": source}
        else:
            found[rule.name] = {"batch_axis": axes[0]}
    return found


def _question(study: Study, rules: Sequence[InputRule], unclear: Asked) -> str:
    shapes = ", ".join(f"'{rule.name}' {format_shape(rule.info.shape)}" for rule in rules)
    named = ", ".join(f"'{name}'" for name in unclear)
    fixed = next((r.size for r in rules if r.role != "constant" and r.name not in unclear and r.size is not None), None)
    meant = "; ".join(f"'{name}' {_meaning(options)}" for name, options in unclear.items())
    others = (
        "the batch of the others" if len(unclear) < len([r for r in rules if r.role != "constant"]) else "the batch"
    )
    return (
        f"the model's inputs are {shapes}: the first axis of {named} is not {others}, and rows fed there would be "
        f"answered wrongly. If {meant}: {command(study, unclear, fixed)}   Otherwise: batch_axis=0 where its rows lie on the "
        "first axis, value=data where it is the same for all rows (docs/data.md)."
    )


def _meaning(options: Mapping[str, object]) -> str:
    if "value" in options:
        return "is the same for all rows, given whole with the data (random without)"
    carried = f" and is carried from output '{options['from']}'" if "from" in options else ""
    return f"has its rows on axis {options['batch_axis']}{carried}"


def carried_output(info: TensorInfo, outputs: Sequence[TensorInfo]) -> str | None:
    """The output of the input's type and shape whose name says that it is its next value: `state` and `stateN`, `h0`, `hn`."""
    alike = [
        found.name
        for found in outputs
        if found.dtype == info.dtype
        and len(found.shape) == len(info.shape) > 0
        and _same_sizes(found.shape, info.shape)
    ]
    return next((name for name in alike if _stem(name) and _stem(name) == _stem(info.name)), None)


def _axis_of_output_rows(info: TensorInfo, outputs: Sequence[TensorInfo]) -> int | None:
    """The axis behind the first whose symbol counts the rows of an output."""
    symbols = {found.shape[0] for found in outputs if found.shape and isinstance(found.shape[0], str)}
    return next((axis for axis, size in enumerate(info.shape) if axis and size in symbols), None)


def _same_sizes(one: Sequence[object], other: Sequence[object]) -> bool:
    return all(not (isinstance(a, int) and isinstance(b, int)) or a == b for a, b in zip(one, other, strict=True))


def _stem(name: str) -> str:
    bare = re.sub(r"[\d:/]+$", "", name)
    bare = re.sub(r"(?<=[a-z])(N|Out|In|Next|New)$", "", _CARRIED.sub("", bare))
    bare = re.sub(r"(?<=^[hc])n$", "", bare)
    return re.sub(r"[\W_\d]+", "", bare).lower()


def _guess(info: TensorInfo) -> object:
    if info.shape:
        return "data"
    if info.dtype == "bool":
        return True
    return 16000 if _SAMPLE_RATE.search(info.name) else 1


def _closed(info: TensorInfo) -> tuple[int, ...]:
    wrong = [size for size in info.shape if not isinstance(size, int)]
    if wrong:
        raise StudyError(
            f"input '{info.name}' is the same for all rows and {format_shape(info.shape)}: its open sizes need "
            "an array in the data."
        )
    return tuple(size for size in info.shape if isinstance(size, int))


def _output_axes(rules: Sequence[InputRule], outputs: Sequence[TensorInfo]) -> dict[str, int]:
    """Batch axes of outputs behind the first: where a symbol of the inputs' batch stands, and those of carried states."""
    symbols = {
        rule.info.shape[rule.axis]
        for rule in rules
        if rule.role != "constant" and rule.axis is not None and isinstance(rule.info.shape[rule.axis], str)
    }
    found = {}
    for info in outputs:
        places = [axis for axis, size in enumerate(info.shape) if size in symbols]
        if places and places[0] > 0:
            found[info.name] = places[0]
    return found | {rule.source: rule.axis for rule in rules if rule.source is not None and rule.axis}


def read_rules(
    declared: Mapping[str, InputOptions], inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> dict[str, InputRule]:
    """The rules of the inputs that a study declares. Raises StudyError for what this model cannot mean."""
    infos = {info.name: info for info in inputs}
    strangers = declared.keys() - infos.keys()
    if strangers:
        raise unknown("input in --input", min(strangers), list(infos))
    return {name: _declared(infos[name], options, inputs, outputs) for name, options in declared.items()}


def _declared(
    info: TensorInfo, options: InputOptions, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> InputRule:
    what = f"--input '{info.name}': the input is {info.dtype} {format_shape(info.shape)}"
    if options.value is not None:
        return InputRule(info, "constant", None, value=_constant(info, options.value, what), declared=True)
    axis: int | None
    if options.batch_axis == "none":
        axis = None
    elif options.batch_axis is not None:
        axis = options.batch_axis
        if axis >= len(info.shape):
            raise StudyError(
                f"{what} and has no axis {axis}: batch_axis goes from 0 to {len(info.shape) - 1}, or is none."
            )
    else:
        axis = _likely_axis(info, inputs)
    if options.source is None:
        return InputRule(info, "rows", axis, declared=True)
    known = {found.name: found for found in outputs}
    if options.source not in known:
        raise unknown(f"output in from= of input '{info.name}'", options.source, list(known))
    given = known[options.source]
    # An output whose shape the file does not tell is checked when it comes.
    fits = not given.shape or (len(given.shape) == len(info.shape) and _same_sizes(given.shape, info.shape))
    if given.dtype != info.dtype or not fits:
        raise StudyError(
            f"{what}, output '{given.name}' is {given.dtype} {format_shape(given.shape)}: a state is carried from an output of "
            "its own type and shape."
        )
    return InputRule(info, "state", axis, source=options.source, init=options.beginning, declared=True)


def _constant(info: TensorInfo, value: object, what: str) -> Array | None:
    """The value in the input's type and shape. None: it is taken from the data."""
    if value == "data":
        return None
    if not numeric(info):
        raise StudyError(f"{what}, whose type a number cannot be.")
    dtype = np.dtype(info.dtype)
    sizes = [size for size in info.shape if isinstance(size, int)]
    given = np.asarray(value)
    if given.ndim and len(info.shape) != 1:
        raise StudyError(f"{what}: a list of values fits an input of one axis, here give one value, or value=data.")
    if not given.ndim and len(sizes) != len(info.shape):
        raise StudyError(
            f"{what}, whose open axes one value does not fill: give value=data and the array with the data."
        )
    if given.ndim and sizes and sizes[0] != len(given):
        raise StudyError(f"{what}, and {len(given)} values are given.")
    with np.errstate(over="ignore", invalid="ignore"):
        made = given.astype(dtype)
    if not (made == given).all() and dtype.kind != "f":
        raise StudyError(f"{what}, which {value} cannot be: give a value of that type.")
    if not np.isfinite(made.astype(np.float64)).all():
        raise StudyError(f"{what}, which {value} is too large for.")
    if given.ndim:
        return made
    check_size(info.name, sizes, dtype)
    return np.full(tuple(sizes), made)


def _likely_axis(info: TensorInfo, inputs: Sequence[TensorInfo]) -> int | None:
    """The batch axis: the first where it is open; else where the symbol stands that is first in another input; else the only
    open one; else the first. None for a single value."""
    if not info.shape:
        return None
    shared = _shared_axis(info, inputs, {})
    if not isinstance(info.shape[0], int):
        return 0
    if shared is not None:
        return shared
    free = [axis for axis, size in enumerate(info.shape) if not isinstance(size, int)]
    return free[0] if len(free) == 1 and len(inputs) > 1 else 0


def _shared_axis(info: TensorInfo, inputs: Sequence[TensorInfo], declared: Mapping[str, InputRule]) -> int | None:
    """The axis behind the first whose symbol is the batch of another input; a symbol is one size everywhere."""
    symbols = _batch_symbols(info, inputs, declared)
    return next((axis for axis, size in enumerate(info.shape) if axis and size in symbols), None)


def _batch_symbols(info: TensorInfo, inputs: Sequence[TensorInfo], declared: Mapping[str, InputRule]) -> set[object]:
    """Symbols of the batch axes of the other inputs."""
    found: set[object] = set()
    for other in inputs:
        rule = declared.get(other.name)
        axis = 0 if rule is None else rule.axis
        if other.name == info.name or not other.shape or axis is None or (rule is not None and rule.role == "constant"):
            continue
        if isinstance(other.shape[axis], str):
            found.add(other.shape[axis])
    return found
