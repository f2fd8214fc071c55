"""`edgeprof backends`."""

from __future__ import annotations

from profiler.cli import options as o

_PURPOSES = {
    "fake": "for tests: computes nothing",
    "injected": "for self-tests: slows another backend down",
    "onnx-reference": "tells which runtime is right where two differ; slow",
}


def command(json: o.Json = False) -> None:
    """Which runtimes and devices work here, and what is missing for the others."""
    import json as json_module
    from dataclasses import asdict

    from rich.table import Table

    from backends import registry
    from backends.base import Availability, EdgeprofError
    from profiler.cli import console

    rows = []
    for name in registry.names():
        backend = registry.get(name)
        for device in backend.devices():
            try:
                told = backend.availability(device)
            except EdgeprofError as error:
                # Installed, and broken: the others are told all the same.
                told = Availability(False, reason=str(error))
            rows.append({"backend": name, "device": device, **asdict(told)})
    if json:
        console.print_json(json_module.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("backend", "device", "usable", "version", "why not, and what to install"):
        table.add_column(title, overflow="fold")
    for row in rows:
        why = "; install: ".join(str(row[key]) for key in ("reason", "install") if row[key])
        why = why or _PURPOSES.get(str(row["backend"]), "")
        table.add_row(
            str(row["backend"]),
            str(row["device"]),
            "yes" if row["available"] else "no",
            str(row["version"] or "—"),
            why,
        )
    console.out.print(table)
