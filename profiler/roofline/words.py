"""A device profile and a model's floor on it as rows of text and as plain data, for the command line and for JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from profiler import units
from profiler.cost.devices import DeviceProfile
from profiler.records import NotMeasured
from profiler.roofline.counting import ModelCounts, converted
from profiler.roofline.limits import NAMES, PRECISIONS, Floor, Share, dominating, floor

Rows = list[tuple[str, str]]

_UNITS = {
    "fp32_tflops": ("fp32", "TFLOPS"), "fp16_dense_tflops": ("fp16, dense", "TFLOPS"),
    "bf16_dense_tflops": ("bf16, dense", "TFLOPS"),
    "fp8_dense_tflops": ("fp8, dense", "TFLOPS"),
    "int8_dense_tops": ("int8, dense", "TOPS"), "int8_sparse_tops": ("int8, 2:4 sparse", "TOPS"),
    "dla_int8_dense_tops": ("int8, DLA apart", "TOPS"),
}  # fmt: skip
_AS_STORED = "as stored"


@dataclass(frozen=True)
class Assumed:
    """A floor with what it assumes: the model as its file stores it, or everything in one precision."""

    name: str
    counts: ModelCounts
    found: Floor | NotMeasured


def profile_sections(profile: DeviceProfile) -> list[tuple[str, Rows]]:
    """Everything that a profile tells, under titles; what nobody could source says `unverified`."""

    def marked(path: str, text: str) -> str:
        return f"{text}, unverified" if path in profile.source.unverified else text

    told: list[tuple[str, Rows]] = [("device", _identity(profile))]
    peaks = [
        (title, marked(f"peak.{key}", f"{value:,g} {unit}"))
        for key, (title, unit) in _UNITS.items()
        if (value := getattr(profile.peak, key)) is not None
    ]
    if profile.peak.basis:
        peaks.append(("basis", profile.peak.basis))
    told.append(("arithmetic peak", peaks or [("none", "no source gives one: no floor can be told")]))
    memory: Rows = []
    for key, title, unit in (
        ("gb", "size", "GB"),
        ("bandwidth_gbs", "bandwidth", "GB/s"),
        ("cache_mb", "caches", "MB"),
    ):
        value = getattr(profile.memory, key)
        memory.append((title, "not known" if value is None else marked(f"memory.{key}", f"{value:,g} {unit}")))
    told.append(("memory", memory))
    cpu = [
        (title, marked(f"cpu.{key}", str(value)))
        for key, title in (("cores", "cores"), ("isa", "instruction sets"))
        if (value := getattr(profile.cpu, key)) is not None
    ]
    told.append(("host processor", cpu or [("none", "not known")]))
    told.append(("power", _power(profile, marked)))
    told.append(("price", _price(profile)))
    sources = [("specifications", profile.source.spec)]
    if profile.source.unverified:
        sources.append(("unverified", f"derived or from memory: {', '.join(profile.source.unverified)}"))
    told.append(("sources", sources))
    return told


def assumed_floors(
    counts: ModelCounts, profile: DeviceProfile, *, threads: int | None = None, sparse: bool = False
) -> list[Assumed]:
    """The model as stored, then as if all of it were in each precision that the profile may have a peak for."""
    cases = [(_AS_STORED, counts), *((NAMES[name], converted(counts, name)) for name in PRECISIONS)]
    return [Assumed(name, case, floor(case, profile, threads=threads, sparse=sparse)) for name, case in cases]


def model_rows(counts: ModelCounts) -> Rows:
    """Totals of a model at its batch size, and what they leave out."""
    by_precision = ", ".join(
        f"{NAMES[name]} {_percent(count / max(1, counts.total_ops))}"
        for name, count in counts.ops_by_precision().items()
    )
    rows = [
        ("batch", f"{counts.batch:,}"),
        ("multiply-accumulates", _count(counts.macs)),
        ("operations", f"{_count(counts.total_ops)} (a multiply-accumulate is two); {by_precision or 'none'}"),
        ("weights read", units.size(counts.weight_bytes)),
        ("inputs and outputs", f"{units.size(counts.input_bytes)} and {units.size(counts.output_bytes)}"),
        ("between ops, unfused", f"{units.size(counts.streamed_bytes)} read and written with the above"),
        (
            "arithmetic intensity",
            "not known: nothing is read" if counts.intensity is None
            else f"{units.significant(counts.intensity)} operations per byte of weights, inputs and outputs",
        ),
    ]  # fmt: skip
    if counts.uncounted:
        missed = sum(counts.uncounted.values())
        rows.append(("not counted", f"{missed} of {counts.nodes} nodes ({_percent(counts.uncounted_share)})"))
        rows += [("", f"{count} × {reason}") for reason, count in counts.uncounted.items()]
    return rows + [("note", note) for note in counts.notes]


def floor_cells(case: Assumed) -> tuple[str, str, str, str, str]:
    """What is assumed, floor, what makes it, with cold caches, unfused; `—` for what is not known."""
    found = case.found
    if isinstance(found, NotMeasured):
        return (case.name, "—", "—", "—", "—")
    value = f"≥ {units.seconds(found.seconds)}{' unverified' if found.unverified else ''}"
    cold = "—" if found.once_s is None else f"≥ {units.seconds(found.cold_s)}"
    streamed = "—" if found.streamed_s is None else units.seconds(found.streamed_s)
    return (case.name, value, found.bound, cold, streamed)


FLOOR_TITLES = ("all in", "floor", "set by", "cold caches", "unfused (no floor)")


def floor_notes(cases: list[Assumed]) -> list[str]:
    """What has to be said of the floors, each thing once: what is not known and why, what is unverified, what is left out."""
    said: dict[str, list[str]] = {}
    for case in cases:
        found = case.found
        if isinstance(found, NotMeasured):
            said.setdefault(f"not known: {found.reason}", []).append(case.name)
            continue
        for note in found.notes:
            said.setdefault(note, []).append(case.name)
        if found.unverified:
            said.setdefault(f"unverified: {', '.join(found.unverified)}", []).append(case.name)
    return [f"{', '.join(names)}: {note}" if len(names) < len(cases) else note for note, names in said.items()]


OP_TITLES = ("op", "type", "in", "operations", "share", "bytes, unfused", "share", "limited by")


def op_cells(share: Share) -> tuple[str, ...]:
    """One of the ops that dominate a model."""
    op = share.op
    return (
        op.name, op.op_type, NAMES[op.precision], _count(op.ops), _percent(share.of_ops), units.size(op.bytes),
        _percent(share.of_bytes), share.bound or "not known",
    )  # fmt: skip


def as_data(
    profile: DeviceProfile, counts: ModelCounts | None, *, threads: int | None = None, sparse: bool = False
) -> dict[str, Any]:
    """The same as plain data with SI units in the names; what is not known is null, and `reason` tells why."""
    data: dict[str, Any] = {"profile": profile.model_dump(mode="json", by_alias=True), "model": None}
    if counts is None:
        return data
    floors: Mapping[str, Any] = {
        case.name: {"reason": case.found.reason} if isinstance(case.found, NotMeasured)
        else asdict(case.found) | {"cold_s": case.found.cold_s}
        for case in assumed_floors(counts, profile, threads=threads, sparse=sparse)
    }  # fmt: skip
    data["model"] = {
        "batch": counts.batch,
        "macs": counts.macs,
        "operations": counts.total_ops,
        "operations_by_precision": counts.ops_by_precision(),
        "weight_bytes": counts.weight_bytes,
        "input_bytes": counts.input_bytes,
        "output_bytes": counts.output_bytes,
        "streamed_bytes": counts.streamed_bytes,
        "operations_per_byte": counts.intensity,
        "nodes": counts.nodes,
        "uncounted": dict(counts.uncounted),
        "notes": list(counts.notes),
        "floors": floors,
        "ops": [
            {
                "name": share.op.name, "op_type": share.op.op_type, "precision": share.op.precision, "macs": share.op.macs,
                "operations": share.op.ops, "weight_bytes": share.op.weight.bytes, "read_bytes": share.op.read.bytes,
                "written_bytes": share.op.written.bytes, "share_of_operations": share.of_ops, "share_of_bytes": share.of_bytes,
                "limited_by": share.bound,
            }
            for share in dominating(counts, profile, len(counts.ops), threads=threads)
        ],
    }  # fmt: skip
    return data


def _identity(profile: DeviceProfile) -> Rows:
    rows = [
        ("name", profile.name),
        ("id", " = ".join((profile.id, *profile.aliases))),
        ("class", profile.device_class),
        ("computes on", profile.compute_unit),
        ("host architecture", profile.arch or "none of its own"),
    ]
    return rows + ([("notes", profile.notes)] if profile.notes else [])


def _power(profile: DeviceProfile, marked: Any) -> Rows:
    power, rows = profile.power, list[tuple[str, str]]()
    if power.modes_w:
        rows.append(("modes", f"{', '.join(f'{watts:g}' for watts in power.modes_w)} W"))
    if power.tdp_w is not None:
        rows.append(("thermal design power", marked("power.tdp_w", f"{power.tdp_w:g} W")))
    for key, source in (("idle", power.idle_source), ("load", power.load_source)):
        value = getattr(power, f"{key}_w")
        if value is not None:
            rows.append((f"whole device, {key}", f"{marked(f'power.{key}_w', f'{value:g} W')}; {source}"))
    rows += [("measured", f"{item.watts:g} W: {item.what}; {item.source}") for item in power.measured]
    return rows or [("none", "not known")]


def _price(profile: DeviceProfile) -> Rows:
    price = profile.price
    if price is None:
        return [("none", "no source gives one")]
    return [
        ("list price", f"${price.usd:,g} ({price.date}{'' if price.verified else ', unverified'})"),
        ("covers", price.covers),
        ("source", price.source),
    ]


def _count(value: int) -> str:
    for scale, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{units.significant(value / scale, 4)}{sign}"
    return str(value)


def _percent(share: float) -> str:
    return f"{units.significant(100 * share, 2)} %"
