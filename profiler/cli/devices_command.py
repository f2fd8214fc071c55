"""`edgeprof devices` and `edgeprof devices show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from profiler.cli import options as o
from profiler.errors import StudyError

_MOST_OPS = 8


def command(
    search: Annotated[
        str, typer.Argument(help="Show only names that contain this; or the word show, and a NAME.")
    ] = "",
    name: Annotated[str | None, typer.Argument(help="After show: the device of which everything is told.")] = None,
    prices: Annotated[
        bool, typer.Option("--prices", help="Cloud machines with their prices instead of devices.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="With show: an .onnx file, and the floor that the device puts under its latency."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", max=65_536, help="With --model: rows of an inference; default 1.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape", help="With --model: name=3,224,224 without the batch axis, for sizes that it leaves open."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="With --model: cores that work, on a CPU; default all.")
    ] = None,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="With --model: its weights are 2:4 sparse, and sparse peaks count.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Device profiles and prices that a measurement can be declared as; `devices show NAME` tells all of one."""
    for_model: dict[str, Any] = {"--batch": batch, "--shape": shape, "--threads": threads, "--sparse": sparse or None}
    stray = next((option for option, value in for_model.items() if value is not None), None)
    if stray is not None and model is None:
        raise StudyError(f"{stray} belongs to a model: edgeprof devices show NAME --model model.onnx {stray} …")
    if search == "show":
        if prices:
            raise StudyError("`devices show` tells of devices: `edgeprof devices --prices NAME` lists cloud machines.")
        if name is None:
            raise StudyError("`devices show` needs a NAME, such as raspberry-pi-5-8gb: `edgeprof devices` lists them.")
        _show(name, model, 1 if batch is None else batch, o.shapes(shape), threads, sparse=sparse, json=json)
        return
    if name is not None or model is not None:
        given = f"'{name}'" if name is not None else "--model"
        raise StudyError(f"{given} is for one device: edgeprof devices show NAME [--model model.onnx].")
    _list(search, prices=prices, json=json)


def _list(search: str, *, prices: bool, json: bool) -> None:
    import json as json_module

    from rich.table import Table

    from profiler.cli import console
    from profiler.cost.detect import detect_machine
    from profiler.cost.devices import load_profiles
    from profiler.cost.prices import load_prices

    detected = detect_machine()
    table = Table(box=None, pad_edge=False)
    if prices:
        found = [price for price in load_prices() if price.unit == "USD/h" and search.lower() in price.name.lower()]
        rows = [price.model_dump(mode="json") | {"name": price.name} for price in found]
        titles = ("--as", "USD/h", "vCPUs", "date", "region")
        cells = [
            (p.name, f"{p.usd_per_hour:g}", "—" if p.vcpus is None else f"{p.vcpus:g}", str(p.date), p.region)
            for p in found
        ]
    else:
        profiles = [
            profile for profile in load_profiles().values() if search.lower() in f"{profile.id} {profile.name}".lower()
        ]
        rows = [profile.model_dump(mode="json") for profile in profiles]
        titles = ("--as", "device", "class", "memory GB", "price")
        cells = [
            (
                f"device:{p.id}", p.name, p.device_class, "—" if p.memory.gb is None else f"{p.memory.gb:g}",
                "none sourced" if p.price is None else _price(p.price.usd, p.price.date, p.price.verified),
            )
            for p in profiles
        ]  # fmt: skip
    if json:
        console.print_json(
            json_module.dumps({"detected": detected.target, "evidence": detected.evidence, "entries": rows}, indent=2)
        )
        return
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in cells:
        table.add_row(*map(str, row))
    console.out.print(table)
    if not cells:
        other = "`edgeprof devices SEARCH` looks at devices" if prices else "cloud machines are prices: add --prices"
        console.out.print(f"nothing is called '{search}' here; {other}", markup=False)
    console.out.print(f"\nthis machine: {detected.target or 'not recognised'} ({detected.evidence})", markup=False)


def _price(usd: float, day: object, verified: bool) -> str:
    return f"${usd:g} ({day}{'' if verified else ', unverified'})"


def _show(
    name: str,
    model: Path | None,
    batch: int,
    shapes: dict[str, tuple[int, ...]],
    threads: int | None,
    *,
    sparse: bool,
    json: bool,
) -> None:
    import json as json_module

    from profiler.cli import console
    from profiler.cost.devices import find_profile
    from profiler.report.layout import Page
    from profiler.report.words import one_line
    from profiler.roofline import words
    from profiler.roofline.artifact import count_file
    from profiler.roofline.limits import dominating

    if threads is not None and threads < 1:
        raise StudyError(f"--threads {threads} is not possible, the smallest is 1.")
    profile = find_profile(name.removeprefix("device:"))
    counts = None if model is None else count_file(model, batch, shapes, checked=True)
    if json:
        data = words.as_data(profile, counts, threads=threads, sparse=sparse)
        console.print_json(json_module.dumps(data, indent=2, allow_nan=False))
        return
    page = Page(console.out)
    page.line(profile.name, style="bold")
    for title, rows in words.profile_sections(profile):
        page.heading(title)
        page.facts(rows)
    if counts is None:
        return
    page.heading(f"{one_line(str(model))} on it")
    page.facts([(title, one_line(text)) for title, text in words.model_rows(counts)])
    floors = words.assumed_floors(counts, profile, threads=threads, sparse=sparse)
    page.heading("the least time of an inference")
    _table(page, words.FLOOR_TITLES, [words.floor_cells(case) for case in floors])
    for note in words.floor_notes(floors):
        page.line(f"note: {one_line(note)}", indent=2, hanging=2)
    page.line(
        "A floor: what no runtime beats that does these operations on this device, however well it fuses and overlaps. "
        "Most take several times as long. How it is counted: docs/roofline.md.",
        style="dim", indent=2, hanging=2,
    )  # fmt: skip
    shares = dominating(counts, profile, _MOST_OPS, threads=threads)
    page.heading(f"the {len(shares)} ops that dominate")
    _table(page, words.OP_TITLES, [tuple(map(one_line, words.op_cells(share))) for share in shares])


def _table(page: Any, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A grid where there is room, else a line for each row."""
    from profiler.report.layout import Column

    columns = [Column(title, [(row[index], "") for row in rows]) for index, title in enumerate(titles)]
    if page.fits(columns, lines=1):
        page.grid(columns, lines=1)
        return
    for row in rows:
        page.line("; ".join(f"{title} {value}" for title, value in zip(titles, row, strict=True)), indent=2, hanging=2)
