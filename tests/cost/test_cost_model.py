"""Cost arithmetic: worked examples, laws, and machines that are refused because they aren't the measured one."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import SessionFacts
from profiler.cost.detect import DetectedMachine
from profiler.cost.model import (
    CostOptions,
    capital_recovery,
    cloud_usd_per_million,
    owned_usd_per_million,
    parse_deployment,
    price_case,
    serverless_usd_per_million,
)
from profiler.cost.prices import load_prices
from profiler.errors import StudyError
from profiler.records import Environment, Estimate, NotMeasured

TODAY = date(2026, 9, 1)
BOOK = load_prices()
rates = st.floats(1e-2, 1e6)
shares = st.floats(0.01, 1.0)


def rate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value, low, high, "samples/s")


def environment(**changes: object) -> Environment:
    base = Environment(
        hostname="host",
        machine="x86_64",
        system="Linux 6.8",
        python="3.11.7",
        cpu_model="Intel(R) Xeon(R) Platinum 8488C",
        cpu_isa=("avx512_vnni", "amx_int8"),
        logical_cores=2,
        usable_cores=2,
        memory_bytes=4 * 2**30,
        hypervisor="kvm",
        gpus=(),
        versions={},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def facts(provider: str = "CPUExecutionProvider", threads: int | None = 1) -> SessionFacts:
    return SessionFacts("onnxruntime", "1.23", provider, threads, None, "not told")


PI = environment(machine="aarch64", cpu_model="Cortex-A76", cpu_isa=("asimddp",), logical_cores=4, usable_cores=4)
T4 = environment(cpu_model=None, gpus=("Tesla T4",), logical_cores=4, usable_cores=4)
CUDA = facts("CUDAExecutionProvider", None)


def case(where: str | None, *, env: Environment | None = None, ran: SessionFacts | None = None, **more: object):
    env, ran = env or environment(), ran or facts()
    throughput = more.pop("throughput", rate(1000.0, 900.0, 1100.0))
    return price_case(throughput, where, environment=env, facts=ran, today=TODAY, book=BOOK, **more)  # type: ignore[arg-type]


class TestWorkedExamples:
    @pytest.mark.parametrize(("use", "usd"), [(1.0, 0.044), (0.3, 0.148)])
    def test_g4dn_server(self, use: float, usd: float):
        """T4 ResNet50 int8 under the Server scenario on g4dn.xlarge: 3,298 queries/s at $0.526/h."""
        cost = cloud_usd_per_million(rate(3298.0), 0.526, use)

        assert cost.value == pytest.approx(usd, abs=0.0005)

    @pytest.mark.parametrize(("use", "usd"), [(0.01, 4.23), (0.05, 0.85), (0.20, 0.21), (0.50, 0.085)])
    def test_agx_orin_resnet50(self, use: float, usd: float):
        """1.64 ms on a $1,999 AGX Orin over 3 years at 8 % with 5 % spares; 21.9 mJ per inference beyond idle."""
        active_w = 0.0219 / 0.00164
        cost = owned_usd_per_million(rate(1 / 0.00164), 1999, utilisation=use, load_w=active_w, usd_per_kwh=0.146)

        assert cost.value == pytest.approx(usd, rel=0.015)

    def test_agx_orin_capital_per_year(self):
        """Capital, interest and spares of the same device: $815 a year."""
        assert 1999 * capital_recovery(0.08, 3) * 1.05 == pytest.approx(815, abs=0.6)

    @pytest.mark.parametrize(("use", "usd"), [(0.05, 0.96), (0.20, 0.24)])
    def test_raspberry_pi_class(self, use: float, usd: float):
        """$125 board, 3 W idle and 5.9 W at work, MobileNet-v2 int8 in 27.6 ms."""
        cost = owned_usd_per_million(rate(1 / 0.0276), 125, utilisation=use, idle_w=3, load_w=5.9, usd_per_kwh=0.146)

        assert cost.value == pytest.approx(usd, abs=0.006)

    def test_serverless(self):
        """$0.20 a million requests plus 2 GB × 23 ms × $0.0000166667 per GB-s."""
        cost = serverless_usd_per_million(
            Estimate(0.0225, 0.022, 0.0231, "s"), 2, usd_per_gb_s=1.66667e-5, usd_per_million_requests=0.2
        )

        assert cost.value == pytest.approx(0.2 + 2 * 0.023 * 16.6667)
        assert cost.low == pytest.approx(0.2 + 2 * 0.022 * 16.6667)
        assert cost.high == pytest.approx(0.2 + 2 * 0.024 * 16.6667)


class TestLaws:
    @given(rates, rates, shares)
    def test_cost_falls_with_throughput(self, one: float, two: float, use: float):
        """More inferences for the same money."""
        slow, fast = sorted((one, two))

        assert cloud_usd_per_million(rate(fast), 0.5, use).value <= cloud_usd_per_million(rate(slow), 0.5, use).value
        assert (
            owned_usd_per_million(rate(fast), 500, utilisation=use).value
            <= owned_usd_per_million(rate(slow), 500, utilisation=use).value
        )

    @given(rates, shares, shares)
    def test_cost_falls_with_utilisation(self, throughput: float, one: float, two: float):
        """Idle hours are paid too, also where the load power is above the idle one."""
        idle, busy = sorted((one, two))
        power = {"idle_w": 3.0, "load_w": 12.0, "usd_per_kwh": 0.15}

        assert (
            cloud_usd_per_million(rate(throughput), 0.5, busy).value
            <= cloud_usd_per_million(rate(throughput), 0.5, idle).value
        )
        owned = [owned_usd_per_million(rate(throughput), 500, utilisation=use, **power).value for use in (busy, idle)]
        assert owned[0] <= owned[1] * (1 + 1e-12)

    @given(rates, st.floats(0.0, 0.9), st.floats(0.0, 5.0), shares)
    def test_low_throughput_is_high_cost(self, value: float, below: float, above: float, use: float):
        """The interval turns round, still holds the value, and spans the same ratio."""
        throughput = rate(value, value * (1 - below), value * (1 + above))
        cost = cloud_usd_per_million(throughput, 0.5, use)

        assert cost.low is not None
        assert cost.high is not None
        assert cost.low <= cost.value <= cost.high
        assert cost.high / cost.low == pytest.approx((1 + above) / (1 - below))
        assert cost.level == throughput.level

    @given(rates, shares, st.floats(1e-3, 1e3))
    def test_cost_is_proportional_to_price(self, throughput: float, use: float, factor: float):
        """Doubling the hourly price doubles the cost; a million per hour at full use costs one hour."""
        one = cloud_usd_per_million(rate(throughput), 0.5, use).value

        assert cloud_usd_per_million(rate(throughput), 0.5 * factor, use).value == pytest.approx(one * factor)
        assert cloud_usd_per_million(rate(1e6 / 3600), 0.7, 1.0).value == pytest.approx(0.7)

    @given(st.floats(0, 1), st.floats(0.1, 30))
    def test_capital_recovery_pays_back_exactly(self, interest: float, years: float):
        """The present value of the yearly payments is the price; without interest it is one part per year."""
        payment = capital_recovery(interest, years)
        present = years if interest == 0 else (1 - (1 + interest) ** -years) / interest

        # The textbook formula itself loses its digits below this rate.
        if interest == 0 or interest > 1e-6:
            assert payment * present == pytest.approx(1)
        assert payment >= 1 / years * (1 - 1e-9)

    @pytest.mark.parametrize("bounds", [(None, None), (0.0, 12.0), (None, 12.0)])
    def test_an_unbounded_interval_stays_unbounded(self, bounds: tuple[float | None, float | None]):
        """No upper bound on the cost is invented where the throughput has no positive lower one."""
        cost = cloud_usd_per_million(rate(10.0, *bounds), 0.5, 1.0)

        assert cost.high is None
        assert (cost.low is None) == (bounds[1] is None)


class TestNotesAndOptions:
    def test_energy_without_power_figures_is_left_out_and_said(self):
        """No power figure, no energy term, one sentence."""
        cost = owned_usd_per_million(rate(100.0), 125, usd_per_kwh=0.3)

        assert cost.note is not None
        assert "energy left out" in cost.note
        assert cost.value == owned_usd_per_million(rate(100.0), 125).value

    def test_energy_without_idle_power_counts_busy_hours_only(self):
        """At half use, 10 W of load cost 5 W of mean power, and the note tells what is missing."""
        bare = owned_usd_per_million(rate(100.0), 125, utilisation=0.5)
        cost = owned_usd_per_million(rate(100.0), 125, utilisation=0.5, load_w=10, usd_per_kwh=0.2)
        millions_per_year = 100 * 0.5 * 8766 * 3600 / 1e6

        assert cost.value - bare.value == pytest.approx(0.005 * 8766 * 0.2 / millions_per_year)
        assert cost.note is not None
        assert "idle left out" in cost.note

    @pytest.mark.parametrize(
        "wrong",
        [
            {"utilisation": 0.0},
            {"utilisation": 1.1},
            {"utilisation": math.nan},
            {"lifetime_years": 0.0},
            {"discount_rate": -0.1},
            {"device_usd": math.inf},
            {"usd_per_kwh": 0.0},
        ],
    )
    def test_impossible_options_are_refused_by_name(self, wrong: dict[str, float]):
        """The error names the option."""
        with pytest.raises(StudyError, match=next(iter(wrong))):
            CostOptions(**wrong)

    def test_a_latency_is_not_taken_for_a_throughput(self):
        """Units guard against the likeliest mix-up, in both directions."""
        with pytest.raises(StudyError, match="inferences per second"):
            cloud_usd_per_million(Estimate(0.01, None, None, "s"), 0.5, 0.6)
        with pytest.raises(StudyError, match="expected 's'"):
            serverless_usd_per_million(rate(10.0), 1, usd_per_gb_s=1e-5, usd_per_million_requests=0.2)

    def test_load_power_below_idle_power_is_refused(self):
        """A device that saves energy by working is a typing error."""
        with pytest.raises(StudyError, match="load_w"):
            owned_usd_per_million(rate(10.0), 125, idle_w=5, load_w=3, usd_per_kwh=0.2)


class TestPriceCase:
    def test_a_declared_instance_is_priced_with_price_date_and_use(self):
        """The design's example: a price, its date and the utilisation stand in the note."""
        cost = case("aws:c7i.large", ran=facts(threads=2))

        assert isinstance(cost, Estimate)
        assert cost.value == pytest.approx(1e6 * 0.08925 / (3600 * 1000 * 0.6))
        assert (cost.low, cost.high) == (pytest.approx(cost.value / 1.1), pytest.approx(cost.value / 0.9))
        assert cost.unit == "USD/1M"
        assert cost.note == "aws:c7i.large@us-east-1 at $0.089/h of 2026-07-20, 60 % use"

    def test_nothing_declared_is_not_priced(self):
        """The reason is the next step."""
        cost = case(None)

        assert isinstance(cost, NotMeasured)
        assert "--as aws:c7i.large" in cost.reason
        assert "edgeprof devices" in cost.reason

    def test_no_throughput_no_cost(self):
        """The throughput's own reason is passed on."""
        cost = case("aws:c7i.large", throughput=NotMeasured("the worker crashed"))

        assert isinstance(cost, NotMeasured)
        assert "the worker crashed" in cost.reason

    def test_fewer_threads_than_vcpus_are_told_not_scaled(self):
        """The whole machine is paid, whatever share the case used."""
        one, two = case("aws:c7i.large", ran=facts(threads=1)), case("aws:c7i.large", ran=facts(threads=2))

        assert isinstance(one, Estimate)
        assert isinstance(two, Estimate)
        assert one.value == two.value
        assert "the machine has 2 vCPUs, the case used 1 thread" in (one.note or "")

    @pytest.mark.parametrize(
        ("where", "env", "ran", "reason"),
        [
            ("aws:c7g.large", environment(), facts(), "is arm64, the case was measured on x86_64"),
            ("aws:c7i.large", PI, facts(), "is x86_64, the case was measured on arm64"),
            ("aws:c7a.large", environment(), facts(), "amd CPU, the case was measured on Intel"),
            ("aws:c7i.large", environment(cpu_model="AMD EPYC 9R14"), facts(), "intel CPU, the case was measured on AMD"),
            ("aws:c7i.large", environment(), facts(threads=4), "has 2 vCPUs, the case used 4 threads"),
            ("aws:g4dn.xlarge", environment(), facts(), r"accelerator machine \(t4\), the case ran on CPU"),
            ("aws:g4dn.xlarge", environment(), facts("CPU"), "the case ran on CPU"),
            ("aws:c7i.large", T4, CUDA, "has no accelerator, the case ran on CUDA"),
            ("aws:g5.xlarge", T4, CUDA, "has a10g, the case was measured on Tesla T4"),
            ("aws:g4dn.xlarge", environment(gpus=("NVIDIA H200",)), facts("NVIDIA H200", None), "has t4, .*NVIDIA H200"),
            ("gcp:a2-ultragpu-1g", T4, CUDA, "has a100, the case was measured on Tesla T4"),
            ("device:raspberry-pi-5-8gb", environment(), facts(), "is arm64, the case was measured on x86_64"),
            ("device:raspberry-pi-5-8gb", PI, CUDA, "has no NVIDIA GPU"),
            ("device:raspberry-pi-5-8gb", PI, facts(threads=8), "at most 4 threads"),
            ("device:nvidia-t4", environment(), facts(), "is an accelerator, the case ran on CPU"),
            ("device:nvidia-l4", T4, CUDA, "has L4, the case was measured on Tesla T4"),
        ],
    )  # fmt: skip
    def test_a_case_is_never_priced_as_a_machine_it_was_not_measured_on(
        self, where: str, env: Environment, ran: SessionFacts, reason: str
    ):
        """Each contradiction is a reason, not a number."""
        cost = case(where, env=env, ran=ran)

        assert isinstance(cost, NotMeasured)
        assert cost.reason.startswith("not priced: ")
        assert re.search(reason, cost.reason), cost.reason

    @pytest.mark.parametrize("where", ["aws:g4dn.xlarge", "azure:NC4as_T4_v3"])
    def test_a_gpu_case_is_priced_on_its_gpu_machine(self, where: str):
        """The same GPU by the driver's name and by the price list's."""
        cost = case(where, env=T4, ran=CUDA)

        assert isinstance(cost, Estimate)
        assert cost.value == pytest.approx(1e6 * 0.526 / (3600 * 1000 * 0.6))

    def test_several_gpus_in_the_price_are_told(self):
        """g4dn.12xlarge has four; the case used one."""
        cost = case("aws:g4dn.12xlarge", env=T4, ran=CUDA)

        assert isinstance(cost, Estimate)
        assert "4 accelerators, the case used one" in (cost.note or "")

    def test_firmware_overrules_the_declaration(self):
        """A run on m5.large isn't priced as c7i.large; the same declaration with a region passes."""
        m5 = DetectedMachine("aws:m5.large", "DMI: product_name 'm5.large'")
        c7i = DetectedMachine("aws:c7i.large", "DMI: product_name 'c7i.large'")

        refused = case("aws:c7i.large", detected=m5)

        assert isinstance(refused, NotMeasured)
        assert "the machine is aws:m5.large" in refused.reason
        assert isinstance(case("aws:c7i.large@us-east-1", detected=c7i), Estimate)

    def test_power_modes_of_one_board_may_be_declared(self):
        """The device tree can't tell Jetson's Super mode apart from the module without it."""
        orin = environment(machine="aarch64", cpu_model="Cortex-A78AE", gpus=("Orin (nvgpu)",), usable_cores=6)
        seen = DetectedMachine("device:jetson-orin-nano-8gb", "device tree: p3767-0005")

        assert isinstance(case("device:jetson-orin-nano-super-8gb", env=orin, ran=CUDA, detected=seen), Estimate)
        assert isinstance(case("device:jetson-agx-orin-64gb", env=orin, ran=CUDA, detected=seen), NotMeasured)

    def test_a_device_is_priced_from_its_profile_with_every_assumption_told(self):
        """Unverified price, life, interest, spares, use and the declared energy all stand in the note."""
        cost = case("device:raspberry-pi-5-8gb", env=PI)

        assert isinstance(cost, Estimate)
        note = cost.note or ""
        for told in (
            "$125 of 2026-02",
            "unverified",
            "3 years at 8 %",
            "5 % spares",
            "60 % use",
            "energy while idle left out",
            "load power declared: TDP 12 W",
            "212 days ago",
        ):
            assert told in note, note

    def test_a_device_without_a_sourced_price_asks_for_one(self):
        """No price is invented; the user's own makes it work, with the profile's measured power and a dated electricity price."""
        pi4 = replace(PI, cpu_model="Cortex-A72")

        asked = case("device:raspberry-pi-4-4gb", env=pi4)
        given_price = case("device:raspberry-pi-4-4gb", env=pi4, options=CostOptions(device_usd=60))

        assert isinstance(asked, NotMeasured)
        assert "no option says what you pay for one" in asked.reason
        assert isinstance(given_price, Estimate)
        assert "electricity at $0.146/kWh" in (given_price.note or "")

    def test_old_prices_are_told(self):
        """A report made years later says that its prices are old."""
        cost = price_case(
            rate(10.0), "aws:c7i.large", environment=environment(), facts=facts(), today=date(2028, 1, 1), book=BOOK
        )

        assert isinstance(cost, Estimate)
        assert "530 days ago" in (cost.note or "")

    @pytest.mark.parametrize(
        "where", ["c7i.large", "device:", "device:toaster", "aws:lambda-large", "grid:US average commercial"]
    )
    def test_unknown_places_are_errors(self, where: str):
        """What cannot be read is told at once, before anything is measured."""
        with pytest.raises(StudyError):
            parse_deployment(where, BOOK)
