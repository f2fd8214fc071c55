"""What runs on a device before anything is installed there: the standard library of Python 3.7 on, and this one file.

The host sends this text through the pipe and the device's Python runs it. Lines of JSON come in, each perhaps followed by so
many raw bytes as its `bytes` says; one line of JSON goes out for each. It looks at the device, takes bundles (whole or, after a
broken transfer, the rest), and takes itself away again. Everything it writes lies below one folder that it made and marked.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

AGENT_PROTOCOL = 1
MARK = "edgeprof-target.json"
MAX_LINE_BYTES = 1 << 20
MAX_CHUNK_BYTES = 16 << 20
IDLE_S = 1800
"""A link that died without a word leaves the pipe open: whoever hears nothing for so long ends."""
MAX_FILE_BYTES = 65536
MAX_FACTS_CHARS = 1 << 18
MODULES = ("numpy", "psutil", "onnxruntime", "openvino", "tensorrt")
"""Packages of the device's own that a bundle can leave out. Looked for, never imported: some take seconds, some crash."""
FILES = (
    "etc/nv_boot_control.conf",
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "etc/os-release",
    "proc/cpuinfo",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "proc/driver/nvidia/version",
    "proc/meminfo",
    "sys/devices/cpu_atom/cpus",
    "sys/devices/cpu_core/cpus",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/present",
    "sys/devices/virtual/dmi/id/board_asset_tag",
    "sys/devices/virtual/dmi/id/board_vendor",
    "sys/devices/virtual/dmi/id/chassis_asset_tag",
    "sys/devices/virtual/dmi/id/chassis_type",
    "sys/devices/virtual/dmi/id/product_name",
    "sys/devices/virtual/dmi/id/sys_vendor",
    "var/lib/nvpmodel/status",
)
"""What tells which device this is. Read as they are; what they mean the host decides."""
PATTERNS = (
    "proc/driver/nvidia/gpus/*/information",
    "sys/class/devfreq/*/cur_freq",
    "sys/class/devfreq/*/max_freq",
    "sys/class/devfreq/*/min_freq",
    "sys/class/power_supply/*/capacity",
    "sys/class/power_supply/*/online",
    "sys/class/power_supply/*/scope",
    "sys/class/power_supply/*/status",
    "sys/class/power_supply/*/type",
    "sys/devices/platform/soc*/*firmware*/get_throttled",
    "sys/devices/system/cpu/cpu[0-9]*/cpu_capacity",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_min_freq",
    "sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id",
    "sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list",
)
"""The same, one file for each core, battery or card."""
QUESTIONS = {
    "nvidia-smi": ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"),
    "vcgencmd": ("vcgencmd", "get_throttled"),
}
"""What only a program tells. These and no others are run, and only when the host asks for `probe`."""
METADATA = {
    "aws": (
        "/latest/meta-data/instance-type", "/latest/meta-data/placement/region", {},
    ),
    "azure": (
        "/metadata/instance/compute/vmSize?api-version=2021-02-01&format=text",
        "/metadata/instance/compute/location?api-version=2021-02-01&format=text",
        {"Metadata": "true"},
    ),
    "gcp": (
        "/computeMetadata/v1/instance/machine-type", "/computeMetadata/v1/instance/zone", {"Metadata-Flavor": "Google"},
    ),
}  # fmt: skip
"""Where each cloud's metadata service tells the machine's type and place, and the header that it wants.

Sources: docs.aws.amazon.com, "Use the Instance Metadata Service" (IMDSv2); learn.microsoft.com, "Azure Instance Metadata
Service"; cloud.google.com/compute/docs/metadata/predefined-metadata-keys."""
METADATA_HOST = "http://169.254.169.254"
METADATA_TIMEOUT_S = 2.0


class Refused(Exception):  # noqa: N818 (an answer, not a mistake of the program)
    """What was asked cannot be done; the text is for people."""


def main(folder: str, commands: BinaryIO, replies: BinaryIO) -> None:
    """Serve commands until the pipe ends. `folder` is where everything of ours lives, `~` allowed."""
    home = os.path.abspath(os.path.expanduser(folder))
    while True:
        signal.alarm(IDLE_S)
        line = commands.readline(MAX_LINE_BYTES)
        signal.alarm(0)
        if not line.endswith(b"\n"):
            return
        try:
            asked = json.loads(line.decode("utf-8"))
            size = int(asked.get("bytes", 0))
            if not 0 <= size <= MAX_CHUNK_BYTES:
                raise Refused(f"a chunk of {size} bytes is not accepted, at most {MAX_CHUNK_BYTES}")
            body = _exactly(commands, size)
            answer = dict(COMMANDS[asked["command"]](home, asked, body), ok=True)
        except Refused as error:
            answer = {"ok": False, "message": str(error)}
        except KeyError as error:
            answer = {"ok": False, "message": f"no command or field {error}"}
        except OSError as error:
            answer = {"ok": False, "message": f"{error.filename or home}: {error.strerror or error}"}
        except (ValueError, TypeError, AttributeError, RecursionError, tarfile.TarError, EOFError) as error:
            answer = {"ok": False, "message": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(answer).encode("ascii") + b"\n")
        replies.flush()


def look(home: str, asked: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """Facts that decide which bundle fits, and those that tell which device this is."""
    del asked, body
    existing = home
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    libc, libc_version = platform.libc_ver()
    bundles = os.path.join(home, "bundles")
    return {
        "protocol": AGENT_PROTOCOL,
        "python": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "executable": sys.executable,
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
        "libc": [libc, libc_version],
        "folder": home,
        "writable": os.access(existing, os.W_OK),
        "free_bytes": shutil.disk_usage(existing).free,
        "modules": {name: version for name in MODULES for version in [_version(name)] if version},
        "bundles": sorted(os.listdir(bundles)) if os.path.isdir(bundles) else [],
        "files": facts("/"),
    }


def facts(root: str) -> dict[str, str]:
    """The text of each of `FILES` and of what fits `PATTERNS`, at most 64 kB of each and 256,000 characters in all."""
    found: dict[str, str] = {}
    left = MAX_FACTS_CHARS
    for name in [*FILES, *(name for pattern in PATTERNS for name in _fitting(root, pattern))]:
        text = _text(root, name)
        if text is None:
            continue
        left -= len(name) + len(text)
        if left < 0:
            break
        found[name] = text
    return found


def _text(root: str, name: str) -> str | None:
    # An emulator may hide the whole of /proc/device-tree; the kernel has the same tree below /sys.
    elsewhere = name.replace("proc/device-tree/", "sys/firmware/devicetree/base/")
    for place in dict.fromkeys((name, elsewhere)):
        try:
            with open(os.path.join(root, place), "rb") as file:
                return file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
        except OSError:  # not there, not ours to read, or a sensor that is powered down
            continue
    return None


def _fitting(root: str, pattern: str) -> list[str]:
    """Files that fit a pattern, shortest names first, so that cpu9 comes before cpu10."""
    names = (os.path.relpath(path, root) for path in glob.glob(os.path.join(glob.escape(root), pattern)))
    return sorted(names, key=lambda name: (len(name), name))


def probe(home: str, asked: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """What programs of the device tell, and, only if `metadata` names clouds, what their metadata services tell."""
    del home, body
    answers = {name: _output(words) for name, words in QUESTIONS.items()}
    clouds = [cloud for cloud in asked.get("metadata", ()) if cloud in METADATA]
    return {
        "commands": {name: text for name, text in answers.items() if text is not None},
        "metadata": {cloud: metadata(cloud) for cloud in clouds},
    }


def metadata(cloud: str, host: str = METADATA_HOST) -> dict[str, str]:
    """`type` and `place` as this cloud's metadata service tells them, or `error`. Nothing else is asked or kept."""
    import http.client
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        """A metadata service never sends anyone elsewhere: the answer is an error then."""

        def redirect_request(self, *_: Any) -> None:
            return

    # No proxy: the address means something only on this machine, and what it answers is nobody else's business.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())

    def ask(path: str, headers: Mapping[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(host + path, headers=dict(headers), method=method)  # noqa: S310 (http only)
        with opener.open(request, timeout=METADATA_TIMEOUT_S) as reply:
            if cloud == "gcp" and reply.headers.get("Metadata-Flavor") != "Google":
                raise OSError("the answer is not Google's")
            return str(reply.read(4096).decode("utf-8", "replace")).strip()

    kind, place, headers = METADATA[cloud]
    try:
        if cloud == "aws":
            headers = {
                "X-aws-ec2-metadata-token": ask(
                    "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT"
                )
            }
        # Google's answers begin with the project's number, which is not asked for.
        return {key: ask(path, headers).rpartition("/")[2] for key, path in (("type", kind), ("place", place))}
    except (OSError, ValueError, http.client.HTTPException) as error:
        return {"error": str(error)[:200] or type(error).__name__}


def _output(words: Sequence[str]) -> str | None:
    """What a program printed within 10 s; None when it is not there or failed."""
    try:
        done = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout[:MAX_FILE_BYTES].decode("utf-8", "replace")


def offer(home: str, asked: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """How much of a bundle is here: all of it, or so many bytes of its archive."""
    del body
    name = _name(asked)
    if os.path.isdir(os.path.join(home, "bundles", name)):
        return {"installed": True, "offset": 0}
    archive = _archive(home, name)
    return {"installed": False, "offset": os.path.getsize(archive) if os.path.isfile(archive) else 0}


def put(home: str, asked: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """The next bytes of a bundle's archive; at 0 it begins anew."""
    archive, offset = _archive(home, _name(asked)), int(asked["offset"])
    _make(home)
    with open(archive, "ab" if offset else "wb") as file:
        if file.tell() != offset:
            raise Refused(f"{file.tell()} bytes are here, the host goes on at {offset}")
        file.write(body)
        return {"offset": file.tell()}


def install(home: str, asked: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """Check an archive, unpack it beside the others, and let it appear at once. One that arrived damaged is thrown away."""
    del body
    name, archive = _name(asked), _archive(home, _name(asked))
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    if digest.hexdigest() != asked["sha256"]:
        os.remove(archive)
        return {"installed": False}
    place, fresh = os.path.join(home, "bundles", name), os.path.join(home, "bundles", f".{name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:*") as tar:
            members = tar.getmembers()
            for member in members:
                parts = member.name.split("/")
                if not (member.isfile() or member.isdir()) or member.name.startswith("/") or ".." in parts:
                    raise Refused(f"the archive holds {member.name!r}, which is no plain file below it")
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            # Names, kinds and modes were checked above; `filter` is missing before 3.8.17.
            safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(fresh, members, **safe)  # noqa: S202
        shutil.rmtree(place, ignore_errors=True)
        os.rename(fresh, place)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    os.remove(archive)
    return {"installed": True}


def keep(home: str, asked: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """Take away all bundles but the named ones, and what broken transfers left."""
    del body
    shutil.rmtree(os.path.join(home, "incoming"), ignore_errors=True)
    wanted = {_valid(str(name)) for name in asked["names"]}
    folder = os.path.join(home, "bundles")
    gone: list[str] = []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name not in wanted:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
            gone.append(name)
    return {"removed": gone}


def remove(home: str, asked: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """Take everything away again, and the folders above that were made for it when nothing else is in them."""
    del asked, body
    mark = os.path.join(home, MARK)
    if not os.path.isdir(home):
        return {"removed": False}
    if not os.path.isfile(mark):
        raise Refused(f"{home} has no {MARK}, so it was not made by edgeprof: not removed")
    try:
        with open(mark, encoding="utf-8") as file:
            above = [str(path) for path in json.load(file)["made"]]
    except (ValueError, KeyError, TypeError):  # the disk was full when it was written
        above = []
    shutil.rmtree(home)
    for path in above:
        if home.startswith(path + os.sep) and not os.listdir(path):
            os.rmdir(path)
    return {"removed": True}


COMMANDS: dict[str, Callable[[str, Mapping[str, Any], bytes], dict[str, Any]]] = {
    "look": look, "probe": probe, "offer": offer, "put": put, "install": install, "keep": keep, "remove": remove,
}  # fmt: skip


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size) if size else b""
    if len(data) != size:
        raise EOFError(f"the pipe ended after {len(data)} of {size} bytes")
    return data


def _valid(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise Refused(f"'{name[:100]}' is no name of a bundle")
    return name


def _name(asked: Mapping[str, Any]) -> str:
    return _valid(str(asked["name"]))


def _archive(home: str, name: str) -> str:
    return os.path.join(home, "incoming", name + ".tar")


def _make(home: str) -> None:
    """Our folder with its mark, which says which folders above it were made too."""
    mark = os.path.join(home, MARK)
    if home in (os.sep, os.path.expanduser("~")):
        raise Refused(f"{home} would be removed with everything in it: choose a folder of its own with --folder")
    if os.path.isdir(home) and os.listdir(home) and not os.path.isfile(mark):
        raise Refused(f"{home} holds other things: choose a folder of its own with --folder")
    if not os.path.isfile(mark):
        above: list[str] = []
        path = os.path.dirname(home)
        while not os.path.isdir(path):
            above.append(path)
            path = os.path.dirname(path)
        os.makedirs(home, mode=0o700, exist_ok=True)
        with open(mark, "w", encoding="utf-8") as file:
            json.dump({"made": above}, file)
    for name in ("bundles", "incoming", "artifacts"):
        os.makedirs(os.path.join(home, name), exist_ok=True)


def _version(name: str) -> str:
    """Version of an installed package, or '' when it is not there."""
    import importlib.util
    from importlib import metadata

    try:
        if importlib.util.find_spec(name) is None:
            return ""
    except (ImportError, ValueError):
        return ""
    for distribution in (name, name + "-gpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
