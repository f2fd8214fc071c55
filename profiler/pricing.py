"""How a measured throughput becomes money in one run: the machine it is priced as, the price book, the options. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from profiler.cost import detect, prices
from profiler.cost import model as cost_model
from profiler.errors import EdgeprofError
from profiler.records import Figure, NotMeasured, ProcessRecord
from profiler.store import RunData


@dataclass(frozen=True)
class Pricing:
    """How throughput becomes money in this run."""

    run: RunData
    machine: str | None
    book: prices.PriceBook
    options: cost_model.CostOptions
    today: date
    detected: detect.DetectedMachine | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, run: RunData, today: date) -> Pricing:
        """What the study declared, else what was detected."""
        asked = run.study.cost
        stored = run.plan.get("detected")
        detected = None if stored is None else detect.DetectedMachine(stored["target"], stored["evidence"])
        machine = asked.machine or (detected.target if detected is not None else None)
        notes: tuple[str, ...] = ()
        if machine is not None and asked.machine is None and detected is not None:
            notes = (f"priced as {machine}: {detected.evidence}",)
        options = cost_model.CostOptions(
            utilisation=asked.utilisation,
            lifetime_years=asked.lifetime_years,
            usd_per_kwh=asked.electricity_usd_per_kwh,
        )
        try:
            book = prices.load_prices(None if asked.prices is None else Path(asked.prices))
        except EdgeprofError as error:
            # The file may be gone, or on another machine: what was measured can still be told.
            book, notes = prices.load_prices(), (*notes, f"your own prices are left out: {error}")
        return cls(run, machine, book, options, today, detected, notes)

    def price(self, throughput: Figure, processes: Sequence[ProcessRecord]) -> Figure:
        """USD per million inferences, or why not."""
        if not processes:
            return NotMeasured("nothing was measured")
        try:
            return cost_model.price_case(
                throughput, self.machine, environment=self.run.environment, facts=processes[-1].facts, today=self.today,
                options=self.options, book=self.book, detected=self.detected,
            )  # fmt: skip
        except EdgeprofError as error:
            return NotMeasured(str(error))
