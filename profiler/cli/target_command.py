"""`edgeprof target …`: the machines that workers can be started on."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiler.errors import TargetError

if TYPE_CHECKING:
    from profiler.measure.sensors import PiThrottled
    from profiler.targets.probe import Found, Jetson

Name = Annotated[str, typer.Argument(help="The target's name.")]


def add(
    name: Annotated[str, typer.Argument(help="What to call it, e.g. jetson.")],
    ssh: Annotated[str | None, typer.Option("--ssh", help="user@host, or a name from ~/.ssh/config.")] = None,
    ssh_config: Annotated[str | None, typer.Option("--ssh-config", help="Another file than ~/.ssh/config.")] = None,
    docker: Annotated[str | None, typer.Option("--docker", help="A running container.")] = None,
    kubectl: Annotated[str | None, typer.Option("--kubectl", help="A running pod, as POD or NAMESPACE/POD.")] = None,
    adb: Annotated[str | None, typer.Option("--adb", help="An Android device's serial number.")] = None,
    command: Annotated[
        str | None,
        typer.Option("--command", help="Any words that come before the interpreter, e.g. 'nsenter -t 71 -m'."),
    ] = None,
    python: Annotated[str, typer.Option("--python", help="The interpreter there, 3.10 or later.")] = "python3",
    folder: Annotated[
        str | None, typer.Option("--folder", help="Where everything of edgeprof goes there; a folder of its own.")
    ] = None,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="It is an emulator: its timings are labelled, and kept off frontiers.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="Its device profile; `target probe` finds most by itself.")
    ] = None,
) -> None:
    """Remember a machine. Nothing is done on it yet."""
    from profiler.cli import console
    from profiler.targets import config

    ways: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
        "--ssh": (
            ssh,
            lambda: {"prefix": config.ssh(str(ssh), config=ssh_config), "shell": True, "link_codes": (255,)},
        ),
        "--docker": (docker, lambda: {"prefix": config.docker(str(docker))}),
        "--kubectl": (kubectl, lambda: {"prefix": config.kubectl(str(kubectl))}),
        "--adb": (adb, lambda: {"prefix": config.adb(str(adb)), "shell": True}),
        "--command": (command, lambda: _prefix(str(command))),
    }
    given = [way for way, (value, _) in ways.items() if value is not None]
    known = config.load()
    if not given and device is not None and name in known:
        _check_device(device)
        config.update(name, device=device)
        console.out.print(f"{name} is a {device} from now on", markup=False)
        return
    if len(given) != 1:
        raise TargetError(f"give one of {', '.join(ways)}, got {' and '.join(given) or 'none'}.")
    if device is not None:
        _check_device(device)
    spec = config.TargetSpec(
        name,
        **ways[given[0]][1](),
        python=python,
        # Two names may lead to one machine: each has a folder of its own, which goes with it.
        folder=folder or f"{config.DEFAULT_FOLDER}/{name}",
        emulated=emulated,
        device=device,
    )
    before = known.get(name)
    if before is not None and before.bundles and (before.prefix, before.folder) != (spec.prefix, spec.folder):
        raise TargetError(
            f"'{name}' is known and has a worker in {before.folder}: `edgeprof target remove {name}` takes it away first. "
            f"`edgeprof target add {name} --device ID` changes only what it is."
        )
    shared = [
        other.name
        for other in known.values()
        if other.name != name and (other.prefix, other.folder) == (spec.prefix, spec.folder)
    ]
    if shared:
        raise TargetError(f"'{shared[0]}' has the same command and folder: give this one a --folder of its own.")
    if before is not None and config.same_place(before, spec):
        spec = replace(spec, bundles=before.bundles)
    config.save(spec)
    console.out.print(
        f"{'Replaced' if before else 'Added'} {name}: {shlex.join(config.words(spec))}\n"
        + ("" if spec.bundles else f"Next: edgeprof target setup {name}"), markup=False, soft_wrap=True,
    )  # fmt: skip


def list_(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """The targets that are known, and what was put on each."""
    import json as json_module
    from dataclasses import asdict

    from rich.table import Table

    from profiler.cli import console
    from profiler.targets import bundle, config

    targets = config.load()
    if json:
        console.print_json(json_module.dumps({name: asdict(spec) for name, spec in targets.items()}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("target", "command", "device", "state"):
        table.add_column(title, overflow="fold")
    table.add_row("local", "", "", "this machine")
    for name, spec in sorted(targets.items()):
        state = "not set up" if not spec.bundles else "ready"
        if spec.bundles and spec.bundles[0] != bundle.modules_name():
            state = "another edgeprof is on it: set it up again"
        words = [word for word in spec.prefix if "=" not in word and word != "-o"]
        table.add_row(
            name, shlex.join(words), spec.device or "no profile known", state + (", emulated" if spec.emulated else "")
        )
    console.out.print(table)


def setup(
    name: Name,
    runtimes: Annotated[
        str | None,
        typer.Option("--runtimes", help="Which to put there: ort,ov; default: all that there are wheels for."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Send everything again, whatever is there.")] = False,
) -> None:
    """Put a worker on it: made here for its Python, architecture and C library, so it needs no network and no pip."""
    from profiler.cli import console
    from profiler.targets import bundle, config, setup

    wanted = None if runtimes is None else tuple(part.strip() for part in runtimes.split(",") if part.strip())
    shown: dict[str, int] = {}

    def told(part: str, sent: int, size: int) -> None:
        percent = 100 * sent // max(size, 1)
        if percent // 25 > shown.get(part, -1):
            shown[part] = percent // 25
            console.err.print(f"edgeprof: {part}: {sent / 1e6:.1f} of {size / 1e6:.1f} MB", markup=False)

    console.err.print(f"edgeprof: looking at {name}, making its bundle", markup=False)
    done = setup.set_up(config.get(name), wanted, bundle.default_cache(), told, fresh=fresh)
    packages = ", ".join(f"{key} {value}" for key, value in sorted(done.packages.items()))
    console.out.print(f"{name} has: {packages or 'no wheels of ours'}", markup=False, soft_wrap=True)
    if done.own:
        own = ", ".join(f"{key} {value}" for key, value in sorted(done.own.items()))
        console.out.print(f"of its own it uses: {own}", markup=False, soft_wrap=True)
    for runtime, reason in done.left_out.items():
        console.out.print(f"without {runtime}: {reason}", markup=False, soft_wrap=True)
    if not done.sent:
        console.out.print("everything was there already", markup=False)
    _show_check(name)


def check(name: Name) -> None:
    """Start a worker there and ask what it can run."""
    _show_check(name)


def probe(
    name: Annotated[str, typer.Argument(help="The target's name; `local` is this machine.")],
    metadata: Annotated[
        bool,
        typer.Option("--metadata", help="Also ask the cloud's metadata service, from the device, for type and place."),
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option("--draft", help="Write a draft of a device profile to this file or folder, - for the terminal."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Recognise which device it is, and remember the device profile that fits."""
    import json as json_module
    from dataclasses import asdict

    from profiler.cli import console
    from profiler.targets import config
    from profiler.targets import draft as drafts
    from profiler.targets import probe as probing

    if json and draft == "-":
        raise TargetError("--json and --draft - both print: give --draft a file.")
    spec = None if name == config.LOCAL else config.get(name)
    found = probing.recognise(probing.ask(spec, metadata=metadata))
    remembered = ""
    if spec is not None and found.device is not None and found.device != spec.device:
        config.update(spec.name, device=found.device)
        remembered = f"remembered for {name}" + (f" (it was {spec.device})" if spec.device else "")
    if json:
        console.print_json(json_module.dumps(asdict(found), indent=2))
    elif draft != "-":
        for label, text in [*_found_lines(found), *([("remembered", remembered)] if remembered else [])]:
            console.out.print(f"{label:<13} {text}", markup=False, highlight=False, soft_wrap=True)
        if found.device is None and spec is not None and spec.device is not None:
            console.out.print(f"{'kept':<13} device profile {spec.device}, as it was", markup=False, soft_wrap=True)
    if draft is not None:
        text = drafts.draft(found)
        if draft == "-":
            console.print_raw(text.rstrip("\n"))
        else:
            console.err.print(f"edgeprof: wrote {_write_draft(text, Path(draft))}", markup=False, soft_wrap=True)


def remove(
    name: Name,
    keep: Annotated[bool, typer.Option("--keep", help="Forget the target but leave what is on the machine.")] = False,
) -> None:
    """Take everything of edgeprof off the machine, and forget it."""
    from profiler.cli import console
    from profiler.targets import config, setup
    from profiler.targets.remote import LinkLost

    spec = config.get(name)
    try:
        gone = not keep and setup.remove(spec)
    except LinkLost as error:
        raise TargetError(f"{error} `edgeprof target remove {name} --keep` forgets it as it is.") from error
    config.forget(name)
    there = f"{spec.folder} is gone from it" if gone else "nothing was removed there"
    console.out.print(f"{name} is forgotten; {there}", markup=False)


def restrict(
    name: Name,
    key: Annotated[Path, typer.Option("--key", help="The public key's file, e.g. ~/.ssh/measuring.pub.")],
) -> None:
    """Print the line for its ~/.ssh/authorized_keys that lets a key start the worker and do nothing else."""
    from profiler.cli import console
    from profiler.targets import config
    from profiler.targets.restrict import authorized_key

    try:
        text = key.expanduser().read_text(encoding="utf-8")[:20_000]
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"cannot read {key}: {error}.") from None
    console.print_raw(authorized_key(config.get(name), text))


COMMANDS = {
    "add": add,
    "list": list_,
    "setup": setup,
    "check": check,
    "probe": probe,
    "restrict": restrict,
    "remove": remove,
}


def _found_lines(found: Found) -> list[tuple[str, str]]:
    """What was found, a label and a text each, the decision first."""
    from profiler.measure import cores

    lines = [
        ("machine", f"{found.name} ({found.kind})"),
        ("device", found.device or _no_device(found)),
        *([("priced as", found.target)] if found.target else []),
        *([("place", found.place)] if found.place else []),
    ]
    counts = [f"{found.physical_cores} cores"] if found.physical_cores else []
    counts += [f"{found.logical_cores} threads"] if found.logical_cores else []
    lines.append(("processor", ", ".join([found.cpu or "not told", *([found.arch] if found.arch else []), *counts])))
    if found.isa:
        lines.append(("instructions", " ".join(found.isa)))
    if len(found.core_classes) > 1:
        lines.append(
            ("core classes", "; ".join(f"{kind} {cores.shown(which)}" for kind, which in found.core_classes.items()))
        )
    if found.memory_bytes is not None:
        lines.append(("memory", f"{found.memory_bytes / 2**30:.1f} GiB"))
    for gpu in found.gpus:
        told = [gpu.name, *([f"{gpu.memory_bytes / 2**30:.1f} GiB"] if gpu.memory_bytes else [])]
        told += [f"driver {gpu.driver}"] if gpu.driver else []
        told += [f"compute capability {gpu.compute_capability}"] if gpu.compute_capability else []
        lines.append(("gpu", ", ".join([*told, gpu.device or "no profile"])))
    lines += _jetson_lines(found.jetson) if found.jetson is not None else []
    if found.throttled is not None:
        lines.append(("throttled", _throttled_words(found.throttled)))
    if found.on_battery is not None:
        lines.append(("power", "on battery" if found.on_battery else "mains"))
    if found.governors:
        lines.append(("governor", ", ".join(found.governors)))
    lines += [("because of", evidence) for evidence in found.evidence]
    return lines + [("not sure", unsure) for unsure in found.unsure]


def _no_device(found: Found) -> str:
    if found.kind in ("cloud", "virtual machine"):
        return "none: a rented or virtual machine has a price, not a profile"
    return "no device profile fits; --draft - writes one to fill"


def _jetson_lines(jetson: Jetson) -> list[tuple[str, str]]:
    release = f"Jetson Linux {jetson.l4t}" if jetson.l4t else "Jetson Linux not told"
    lines = [
        ("module", jetson.module or "not told"),
        ("release", release + (f", JetPack {jetson.jetpack}" if jetson.jetpack else "")),
    ]
    if jetson.power_mode is not None:
        lines.append(("power mode", f"{jetson.power_mode} {jetson.power_modes.get(jetson.power_mode, '')}".strip()))
    if jetson.power_modes:
        listed = ", ".join(f"{number} {name}" for number, name in jetson.power_modes.items())
        lines.append(("power modes", listed))
    pinned = {
        True: "pinned (jetson_clocks)",
        False: "move with the load: `sudo jetson_clocks` pins them",
        None: "not told",
    }
    return [*lines, ("clocks", pinned[jetson.clocks_pinned])]


def _throttled_words(throttled: PiThrottled) -> str:
    if not throttled.since_boot and not throttled.now:
        return "not since boot"
    now = f"now: {', '.join(throttled.now)}; " if throttled.now else ""
    return f"{now}since boot: {', '.join(throttled.since_boot) or 'nothing'} ({throttled.bits:#x})"


def _write_draft(text: str, place: Path) -> Path:
    from profiler.targets import draft as drafts

    path = place / drafts.file_name(text) if place.is_dir() else place
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise TargetError(f"{path} exists: name another file, or remove it.") from None
    except OSError as error:
        raise TargetError(f"cannot write the draft to {path}: {error.strerror}.") from None
    return path


def _show_check(name: str) -> None:
    from profiler.cli import console
    from profiler.targets import config, setup

    found = setup.check(config.get(name))
    console.out.print(
        f"{name}: a worker starts (Python {found.worker.get('python')}, protocol {found.worker.get('protocol')})",
        markup=False,
    )
    for backend, (good, words) in found.backends.items():
        console.out.print(
            f"  {backend:<4} {'runs' if good else 'does not run'}{f': {words}' if words else ''}", markup=False
        )
    if not any(good for good, _ in found.backends.values()):
        raise typer.Exit(1)


def _check_device(device: str) -> None:
    from profiler.cost.devices import load_profiles
    from profiler.errors import unknown

    profiles = load_profiles()
    if device not in profiles:
        raise unknown("device profile", device, profiles, hint="`edgeprof devices` lists them.")


def _prefix(command: str) -> dict[str, Any]:
    """A prefix, and what is known of it: ssh gives its words to a shell.

    Whatever leads to a machine over ssh or like it ends with 255 when the connection is lost; a worker of ours never does.
    """
    words = _words(command)
    return {"prefix": words, "shell": bool(words) and PurePath(words[0]).name == "ssh", "link_codes": (255,)}


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise TargetError(f"--command {command!r} cannot be split into words: {error}.") from None
