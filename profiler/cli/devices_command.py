"""`edgeprof devices`."""

from __future__ import annotations

from typing import Annotated

import typer

from profiler.cli import options as o


def command(
    search: Annotated[str, typer.Argument(help="Show only names that contain this.")] = "",
    prices: Annotated[
        bool, typer.Option("--prices", help="Cloud machines with their prices instead of devices.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Device profiles and prices that a measurement can be declared as."""
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
        console.print_raw(
            json_module.dumps({"detected": detected.target, "evidence": detected.evidence, "entries": rows}, indent=2)
        )
        return
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in cells:
        table.add_row(*map(str, row))
    console.out.print(table)
    console.out.print(f"\nthis machine: {detected.target or 'not recognised'} ({detected.evidence})", markup=False)


def _price(usd: float, day: object, verified: bool) -> str:
    return f"${usd:g} ({day}{'' if verified else ', unverified'})"
