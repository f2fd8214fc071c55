"""Machine detection on file trees as real machines show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.cost.detect import AZURE_CHASSIS_TAG, JETSON_MODULES, detect_machine
from profiler.cost.devices import load_profiles

DMI = "sys/devices/virtual/dmi/id"


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def dmi(root: Path, **facts: str) -> Path:
    return tree(root, {f"{DMI}/{name}": f"{value}\n" for name, value in facts.items()})


def board(root: Path, model: str, compatible: str, mem_kb: int = 8_000_000) -> Path:
    return tree(
        root,
        {
            "proc/device-tree/model": f"{model}\0",
            "proc/device-tree/compatible": f"{compatible}\0",
            "proc/meminfo": f"MemTotal:        {mem_kb} kB\nMemFree:          123456 kB\n",
        },
    )


@pytest.mark.parametrize(
    "product", ["c7i.large", "g4dn.xlarge", "p6-b200.48xlarge", "c5.metal", "m7i.metal-24xl", "t3.micro"]
)
def test_ec2_tells_its_instance_type(tmp_path: Path, product: str):
    """Nitro machines carry the type in DMI."""
    root = dmi(
        tmp_path,
        sys_vendor="Amazon EC2",
        board_vendor="Amazon EC2",
        product_name=product,
        board_asset_tag="i-0123456789abcdef0",
    )

    machine = detect_machine(root)

    assert machine.target == f"aws:{product}"
    assert "i-0123456789abcdef0" in machine.evidence


@pytest.mark.parametrize("product", ["HVM domU", "", "../../etc.large", "c7i.large; rm -rf", "C7I", "c7i.\x1b[2Jlarge"])
def test_ec2_without_a_type_is_not_guessed(tmp_path: Path, product: str):
    """Text that is no instance type becomes a reason, without control characters."""
    machine = detect_machine(dmi(tmp_path, sys_vendor="Amazon EC2", product_name=product))

    assert machine.target is None
    assert "--as aws:" in machine.evidence
    assert machine.evidence.isprintable()


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine", "board_vendor": "Google"}, "--as gcp:"),
        (
            {
                "sys_vendor": "Microsoft Corporation",
                "product_name": "Virtual Machine",
                "chassis_asset_tag": AZURE_CHASSIS_TAG,
            },
            "an Azure machine",
        ),
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, "Hyper-V"),
        ({"sys_vendor": "Dell Inc.", "product_name": "XPS 13 9310"}, "XPS 13 9310"),
        ({"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)"}, "no known cloud machine"),
    ],
)
def test_machines_that_do_not_tell_their_type_are_not_guessed(tmp_path: Path, facts: dict[str, str], said: str):
    """The reason says what was recognised and what to declare."""
    machine = detect_machine(dmi(tmp_path, **facts))

    assert machine.target is None
    assert said in machine.evidence
    assert "--as" in machine.evidence


def test_a_container_without_firmware_files_gets_a_reason(tmp_path: Path):
    """No files, no guess, no exception."""
    machine = detect_machine(tmp_path)

    assert machine.target is None
    assert "neither DMI nor a device tree" in machine.evidence


@pytest.mark.parametrize(
    ("model", "compatible", "mem_kb", "target"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b\0brcm,bcm2712", 8_256_304, "device:raspberry-pi-5-8gb"),
        ("Raspberry Pi 5 Model B Rev 1.1", "raspberrypi,5-model-b\0brcm,bcm2712", 16_608_144, "device:raspberry-pi-5-16gb"),
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b\0brcm,bcm2712", 4_144_000, "device:raspberry-pi-5-4gb"),
        ("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b\0brcm,bcm2711", 3_885_396, "device:raspberry-pi-4-4gb"),
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b\0brcm,bcm2712", 2_070_000, None),
        ("Raspberry Pi Zero 2 W Rev 1.0", "raspberrypi,model-zero-2-w\0brcm,bcm2837", 439_000, None),
        ("Raspberry Pi 400 Rev 1.0", "raspberrypi,400\0brcm,bcm2711", 3_885_396, None),
        (
            "NVIDIA Jetson Orin Nano Developer Kit",
            "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234",
            7_650_336,
            "device:jetson-orin-nano-8gb",
        ),
        (
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234",
            7_650_336,
            "device:jetson-orin-nano-super-8gb",
        ),
        (
            "NVIDIA Jetson AGX Orin Developer Kit",
            "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234",
            64_349_000,
            "device:jetson-agx-orin-64gb",
        ),
        (
            "NVIDIA Jetson Xavier NX Developer Kit",
            "nvidia,p3449-0000+p3668-0000\0nvidia,tegra194",
            7_800_000,
            "device:jetson-xavier-nx-8gb",
        ),
        ("NVIDIA Jetson AGX Orin", "nvidia,p3737-0000+p3701-0004\0nvidia,tegra234", 30_000_000, None),
    ],
)  # fmt: skip
def test_boards_are_known_by_their_device_tree(
    tmp_path: Path, model: str, compatible: str, mem_kb: int, target: str | None
):
    """Known boards map to a profile; their unknown siblings give a reason that names them."""
    machine = detect_machine(board(tmp_path, model, compatible, mem_kb))

    assert target == machine.target
    assert model in machine.evidence


def test_every_module_maps_to_a_profile_that_exists():
    """The table of part numbers and the profiles agree."""
    assert set(JETSON_MODULES.values()) <= set(load_profiles())


def test_garbage_in_the_firmware_files_does_no_harm(tmp_path: Path):
    """Long and binary contents are bounded and made printable."""
    root = tree(tmp_path, {"proc/device-tree/model": b"\xff\x1b" * 100_000, f"{DMI}/sys_vendor": b"\x00\xff" * 9000})

    machine = detect_machine(root)

    assert machine.target is None
    assert len(machine.evidence) < 1000
    assert machine.evidence.isprintable()


def test_an_arm_server_with_another_device_tree_is_still_seen_by_dmi(tmp_path: Path):
    """A device tree that is no known board does not hide the cloud's DMI."""
    tree(
        tmp_path,
        {"proc/device-tree/model": b"linux,dummy-virt\0", "proc/device-tree/compatible": b"linux,dummy-virt\0"},
    )

    machine = detect_machine(dmi(tmp_path, sys_vendor="Amazon EC2", product_name="c7g.large"))

    assert machine.target == "aws:c7g.large"
