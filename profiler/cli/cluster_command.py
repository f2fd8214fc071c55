"""`edgeprof cluster …`: certificates for a dask.distributed cluster, and whether one can be used from here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.errors import StudyError

if TYPE_CHECKING:
    from profiler.cluster.client import Cluster

Address = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="A dask.distributed scheduler, tls://HOST:8786: variants and accuracy are worked out there."
    ),
]
Keys = Annotated[
    Path | None,
    typer.Option(
        "--cluster-keys", help="Folder with ca.pem, client.pem and client.key; default: $EDGEPROF_CLUSTER_KEYS."
    ),
]
Insecure = Annotated[
    bool, typer.Option("--cluster-insecure", help="Accept tcp:// without encryption, on this machine's loopback only.")
]


@contextmanager
def connected(address: str | None, keys: Path | None, *, insecure: bool) -> Iterator[Cluster | None]:
    """The cluster of the options `--cluster …`, connected; None without them. Raises EdgeprofError."""
    if address is None:
        if keys is not None or insecure:
            raise StudyError("--cluster-keys and --cluster-insecure belong to --cluster ADDRESS, which is missing.")
        yield None
        return
    from profiler.cluster.address import settings
    from profiler.cluster.client import connect

    with connect(settings(address, keys, insecure=insecure)) as cluster:
        yield cluster


def keys(
    folder: Annotated[Path, typer.Argument(help="Where they go; made when it is missing.")],
    days: Annotated[int, typer.Option("--days", help="How long they are valid.")] = 365,
) -> None:
    """Make a private authority, and certificates for a scheduler, its workers and its clients."""
    from datetime import datetime, timezone

    from profiler.cli import console
    from profiler.cluster.keys import make_keys

    made = make_keys(folder.expanduser(), now=datetime.now(timezone.utc), days=days)
    console.out.print(
        f"{len(made)} files in {folder}, valid for {days} days.\n"
        "The scheduler's machine gets ca.pem, scheduler.pem and scheduler.key; each worker's ca.pem, worker.pem and worker.key; "
        "you keep ca.pem, client.pem and client.key.\n"
        "ca.key stays on none of them: whoever has it can make more. Whoever holds a .key can run code on the cluster.\n"
        f"Next: export EDGEPROF_CLUSTER_KEYS={folder}; the commands that start the cluster stand in docs/cluster.md",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def check(
    address: Annotated[str, typer.Argument(help="The scheduler, e.g. tls://build.example:8786.")],
    cluster_keys: Keys = None,
    cluster_insecure: Insecure = False,
) -> None:
    """Connect, compare versions, and list the workers and what may be done on them."""
    from rich.table import Table

    from profiler.cli import console
    from profiler.cluster.address import settings
    from profiler.cluster.client import connect

    with connect(settings(address, cluster_keys, insecure=cluster_insecure)) as cluster:
        table = Table(box=None, pad_edge=False)
        for title in ("worker", "host", "processor", "cores", "variants", "accuracy of cases on this machine"):
            table.add_column(title, overflow="fold")
        for worker, machine in sorted(cluster.machines.items()):
            alike = machine.runs_like(cluster.here)
            table.add_row(
                worker, machine.host, machine.cpu, str(machine.cores), "yes",
                "yes" if alike else "no: other instruction sets",
            )  # fmt: skip
        console.out.print(table)


COMMANDS = {"keys": keys, "check": check}
