"""The shipped facts: every device profile and price row loads, is sourced and dated, and says what is not verified."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from device_profiles import price_files, profile_files
from profiler.cost.devices import DeviceProfile, find_profile, load_profiles, parse_profile
from profiler.cost.prices import ON_DEMAND, load_prices, parse_prices
from profiler.errors import StudyError

PROFILES = load_profiles()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
class TestProfile:
    def test_names_its_source(self, profile: DeviceProfile):
        """A profile without a source is a rumour."""
        assert len(profile.source.spec) > 10

    def test_has_a_dated_and_sourced_price_or_none(self, profile: DeviceProfile):
        """A list price carries date, source and what it covers; an unsourced one is not verified."""
        if profile.price is not None:
            assert re.fullmatch(r"\d{4}(-\d\d){0,2}", profile.price.date)
            assert profile.price.covers
            assert ("http" in profile.price.source) >= profile.price.verified
            assert not (profile.price.verified and "unverified" in profile.price.source)

    def test_dense_peaks_stay_below_sparse_ones(self, profile: DeviceProfile):
        """2:4 sparsity doubles the peak at most, DLA included: the dense figure is never the headline."""
        peak = profile.peak
        if peak.int8_sparse_tops is not None and peak.int8_dense_tops is not None:
            dense = peak.int8_dense_tops + (peak.dla_int8_dense_tops or 0)

            assert peak.int8_sparse_tops == pytest.approx(2 * dense, rel=0.02)

    def test_int8_peak_is_at_least_the_fp16_one(self, profile: DeviceProfile):
        """No device here computes int8 slower than fp16 on paper; a swapped pair would show."""
        if profile.peak.fp16_dense_tflops is not None and profile.peak.int8_dense_tops is not None:
            assert profile.peak.int8_dense_tops >= profile.peak.fp16_dense_tflops


def test_profiles_cover_the_field():
    """At least 30 kinds, of each class that people deploy on."""
    assert len(PROFILES) >= 30
    assert {"edge", "laptop", "server", "gpu", "asic"} <= {profile.device_class for profile in PROFILES.values()}


def test_absent_figures_are_absent_not_zero():
    """No profile writes 0 for unknown."""
    for name, text in profile_files().items():
        assert not re.search(r"= 0(\.0+)?$", text, re.MULTILINE), name


def test_remembered_figures_are_marked_unverified():
    """The figures known only from memory carry the mark."""
    assert "peak.int8_dense_tops" in PROFILES["nvidia-a10g"].source.unverified
    assert PROFILES["jetson-agx-orin-64gb"].price is not None
    assert PROFILES["jetson-agx-orin-64gb"].price.verified is False
    assert PROFILES["jetson-orin-nano-super-8gb"].price is not None
    assert PROFILES["jetson-orin-nano-super-8gb"].price.verified is True


def test_jetson_headline_is_not_the_dense_gpu_peak():
    """AGX Orin's 275 TOPS are sparse and DLA included; its dense GPU peak is 64 tensor cores × 1.3 GHz × 1024."""
    peak = PROFILES["jetson-agx-orin-64gb"].peak

    assert peak.int8_dense_tops == pytest.approx(64 * 1.3 * 1024 / 1000, rel=1e-3)
    assert peak.dla_int8_dense_tops == 52.5
    assert peak.int8_sparse_tops == 275


def test_profiles_are_found_by_id_alias_and_name():
    """Three spellings, one profile."""
    expected = PROFILES["raspberry-pi-5-8gb"]

    assert find_profile("raspberry-pi-5-8gb") == expected
    assert find_profile("RPI5-8GB") == expected
    assert find_profile("raspberry pi 5 8gb") == expected


def test_aliases_are_unambiguous():
    """No alias is another profile's id or alias."""
    names = [name for profile in PROFILES.values() for name in (profile.id, *profile.aliases)]

    assert len(names) == len(set(names))


def test_unknown_device_is_answered_with_near_ones():
    """The error names the near match and the command that lists all."""
    with pytest.raises(StudyError, match=r"Did you mean raspberry-pi-5-8gb.*edgeprof devices"):
        find_profile("raspbery-pi-5-8gb")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "nvidia-t4"', 'id = "nvidia-t5"', "name the file nvidia-t5.toml"),
        ("tdp_w = 70", "tdp_w = 0", "power.tdp_w"),
        ("tdp_w = 70", "tdp_w = nan", "power.tdp_w"),
        ("tdp_w = 70", "idle_w = 9", "idle_w needs idle_source"),
        ("tdp_w = 70", "tdp_kw = 70", "tdp_kw"),
        ("[source]", '[source]\nunverified = ["peak.int9"]', "peak.int9"),
        ("tdp_w = 70", "tdp_w = = 70", "is not TOML"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_field(old: str, new: str, message: str):
    """Each plausible mistake names file and field."""
    text = profile_files()["nvidia-t4.toml"]
    assert old in text

    with pytest.raises(StudyError, match=re.escape(message)) as error:
        parse_profile(text.replace(old, new), "nvidia-t4.toml")
    assert "nvidia-t4.toml" in str(error.value)


@pytest.mark.parametrize("name", price_files())
def test_each_price_row_is_dated_and_sourced(name: str):
    """Every row of every shipped list loads, with unit, date and source of its own."""
    prices = parse_prices(price_files()[name], name)

    assert len(prices) == sum(1 for _ in csv.DictReader(io.StringIO(price_files()[name])))
    for price in prices:
        assert price.unit
        assert re.fullmatch(r"20\d\d(-\d\d){0,2}", price.date)
        assert len(price.source) > 10
        assert price.facts_source is not None or (price.vcpus, price.arch, price.accelerator) == (None, None, None)


def test_the_price_book_covers_three_clouds():
    """At least 60 on-demand machines, each with architecture and vCPUs told by a source."""
    machines = [price for price in load_prices() if price.service in ON_DEMAND]

    assert len(machines) >= 60
    assert {"aws", "azure", "gcp"} == {price.provider for price in machines}
    assert [
        price.name for price in machines if price.facts_source and (price.arch is None or price.vcpus is None)
    ] == []


@pytest.mark.parametrize(
    ("name", "usd_per_hour", "vcpus", "arch", "accelerator"),
    [
        ("aws:c7i.xlarge", 0.1785, 4, "x86_64", None),
        ("aws:c7g.xlarge", 0.145, 4, "arm64", None),
        ("aws:g4dn.xlarge", 0.526, 4, "x86_64", "t4"),
        ("aws:inf2.xlarge", 0.7582, 4, "x86_64", "inferentia2"),
        ("aws:p5.48xlarge", 55.04, 192, "x86_64", "h100"),
        ("azure:Standard_D4s_v5", 0.192, 4, "x86_64", None),
        ("azure:Standard_D4ps_v6", 0.14, 4, "arm64", None),
        ("azure:Standard_NC4as_T4_v3", 0.526, 4, "x86_64", "t4"),
        ("gcp:c3-highcpu-4", 0.170104, 4, "x86_64", None),
        ("gcp:t2a-standard-4", 0.154, 4, "arm64", None),
        ("gcp:g2-standard-4", 0.706832255, 4, "x86_64", "l4"),
    ],
)
def test_known_prices_are_in_the_book(name: str, usd_per_hour: float, vcpus: int, arch: str, accelerator: str | None):
    """Spot checks against figures read by hand from the providers' tables of mid 2026."""
    price = load_prices().find(name)

    assert (usd_per_hour, vcpus, arch, accelerator) == (price.usd_per_hour, price.vcpus, price.arch, price.accelerator)


def test_the_guide_for_new_devices_and_prices_shows_what_loads():
    """The two examples of docs/adding-a-device.md are read by the code they explain."""
    text = (Path(__file__).parent.parent / "docs" / "adding-a-device.md").read_text(encoding="utf-8")
    toml, table = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("toml", "csv"))
    assert toml is not None
    assert table is not None

    assert parse_profile(toml[1], "example-board-8gb.toml").peak.dla_int8_dense_tops == 20
    assert [price.name for price in parse_prices(table[1], "own.csv")] == ["lab:box-1@rack"]
