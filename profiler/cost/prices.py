"""The price book: what is paid per hour, kWh, GB or request, each price with region, date and source.

Shipped lists are part of the package. A user's own list is untrusted input: bounded in size, read as plain CSV, every row
checked, every complaint with its line number.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date as Date  # noqa: N812 (the field is called `date`, as in the CSV files)
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from device_profiles import price_files
from profiler.cost.devices import PartialDate
from profiler.errors import StudyError, unknown

STALE_DAYS = 180
"""Prices older than this earn a warning: providers and board makers change theirs more than once a year."""

MAX_BYTES = 5_000_000
MAX_ROWS = 50_000
MAX_TEXT = 500

ON_DEMAND = ("ec2-on-demand-linux", "vm-paygo-linux", "gce-on-demand")
REQUIRED = ("provider", "sku", "unit", "price", "date", "source")


class Price(BaseModel):
    """One price, and what is known of the machine it buys (None where the source doesn't tell)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    service: str = "on-demand"
    sku: str
    region: str | None = None
    unit: str
    """`USD/h` for machines; `USD/kWh`, `USD/GB`, `USD/GB-s`, `USD/1M requests`, … for the rest."""
    price: float
    date: PartialDate
    """When the price held, with as many digits as the source gives."""
    source: str
    verified: bool = True
    notes: str | None = None
    vcpus: float | None = None
    memory_gib: float | None = None
    arch: Literal["x86_64", "arm64"] | None = None
    cpu_vendor: Literal["intel", "amd", "aws"] | None = None
    accelerator: str | None = None
    """Kind of GPU or ASIC in the machine (`t4`, `a100`, `inferentia2`); `gpu` where the kind isn't told."""
    accelerator_count: float | None = None
    facts_source: str | None = None

    @field_validator("provider", "sku", "unit", "source", "service", "notes", "region", "accelerator", "facts_source")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value or len(value) > MAX_TEXT or not value.isprintable():
            raise ValueError(f"expected 1 to {MAX_TEXT} printable characters")
        return value

    @field_validator("price", "vcpus", "memory_gib", "accelerator_count")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"expected a finite number above 0, got {value}")
        return value

    @field_validator("date")
    @classmethod
    def _real_date(cls, value: str) -> str:
        _first_day(value)
        return value

    @property
    def name(self) -> str:
        """`aws:c7i.large@us-east-1`; what `PriceBook.find` reads."""
        return f"{self.provider}:{self.sku}" + (f"@{self.region}" if self.region else "")

    @property
    def usd_per_hour(self) -> float:
        """The hourly price. Raises StudyError when this price is not one."""
        if self.unit != "USD/h":
            raise StudyError(f"{self.name} is priced in {self.unit}, expected USD/h: name a machine, not a service.")
        return self.price

    def age_days(self, today: Date) -> int:
        """Days since the price held; a year or month without day counts from its first day."""
        return (today - _first_day(self.date)).days

    def stale_warning(self, today: Date) -> str | None:
        """What to tell when the price is older than STALE_DAYS, else None."""
        return stale_warning(self.name, self.date, today)


def stale_warning(name: str, date: str, today: Date) -> str | None:
    """The warning for a price of that (possibly partial) date when it is older than STALE_DAYS, else None."""
    days = (today - _first_day(date)).days
    if days <= STALE_DAYS:
        return None
    return f"the price of {name} is from {date}, {days} days ago (over {STALE_DAYS}): check it and give a current one"


def _first_day(date: str) -> Date:
    year, month, day = (*map(int, date.split("-")), 1, 1)[:3]
    return Date(year, month, day)


_Key = tuple[str, str, str, str | None]


@dataclass(frozen=True)
class PriceBook:
    """Prices by (provider, service, sku, region)."""

    prices: Mapping[_Key, Price]

    def __iter__(self) -> Iterator[Price]:
        """The prices, in the order read."""
        return iter(self.prices.values())

    def __len__(self) -> int:
        """Number of prices."""
        return len(self.prices)

    def find(self, text: str, *, service: str | None = None) -> Price:
        """The price of `provider:sku` or `provider:sku@region`, in any case; Azure's `Standard_` may be left out.

        Without `service` an on-demand price is preferred. Raises StudyError with near matches when there is none, and
        with the candidates when the text fits several.
        """
        provider, colon, rest = text.strip().partition(":")
        sku, _, region = rest.partition("@")
        if not colon or not sku:
            raise StudyError(f"cannot read '{text}': expected provider:sku or provider:sku@region, e.g. aws:c7i.large.")
        of_provider = [price for price in self if price.provider.casefold() == provider.casefold()]
        if not of_provider:
            raise unknown("provider", provider, {price.provider for price in self}, hint="Your own prices: a CSV file.")
        names = {sku.casefold(), f"standard_{sku}".casefold()}
        found = [
            price
            for price in of_provider
            if price.sku.casefold() in names
            and (not region or (price.region or "").casefold() == region.casefold())
            and (service is None or price.service == service)
        ]
        if not found:
            raise self._unknown_sku(provider, rest, of_provider)
        on_demand = [price for price in found if price.service in ON_DEMAND or price.service == "on-demand"]
        found = on_demand if on_demand and service is None else found
        if len(found) > 1:
            options = ", ".join(sorted(f"{price.name} ({price.service})" for price in found))
            raise StudyError(f"'{text}' fits several prices: {options}. Name the region, as in {found[0].name}.")
        return found[0]

    def _unknown_sku(self, provider: str, wanted: str, prices: list[Price]) -> StudyError:
        # A provider sells hundreds of types: the error names the near ones, not all.
        machines = [price for price in prices if price.unit == "USD/h"]
        names = {price.sku.removeprefix("Standard_").casefold(): price.sku for price in machines}
        sku = wanted.partition("@")[0].casefold()
        family = [
            name for name in sorted(names) if name.startswith(sku) or name.partition(".")[0] == sku.partition(".")[0]
        ]
        near = list(dict.fromkeys([*get_close_matches(sku, names, n=6, cutoff=0.6), *family]))[:12]
        regions = sorted({price.region for price in machines if price.region})
        return StudyError(
            f"no price for '{provider}:{wanted}'. Near names: {', '.join(names[name] for name in near) or 'none'}. "
            f"The book has {len(names)} {provider} machines in {', '.join(regions) or 'no region'}; "
            "add yours with a price file (docs/adding-a-device.md)."
        )


@lru_cache(maxsize=1)
def _shipped() -> tuple[Price, ...]:
    return tuple(price for name, text in price_files().items() for price in parse_prices(text, name))


def load_prices(extra: Path | None = None) -> PriceBook:
    """The shipped prices; rows of `extra` (a CSV file) are added and win over shipped ones with the same key.

    Raises StudyError when the file is missing, too large, or has a row that cannot be a price.
    """
    own = parse_prices(_read(extra), str(extra)) if extra is not None else ()
    return PriceBook({_key(price): price for price in (*_shipped(), *own)})


def parse_prices(text: str, origin: str) -> tuple[Price, ...]:
    """Prices of a CSV text with a header row. Raises StudyError that names `origin`, the line and the column."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    prices: dict[_Key, Price] = {}
    try:
        header = reader.fieldnames or ()
        missing = [column for column in REQUIRED if column not in header]
        unexpected = [column for column in header if column not in Price.model_fields]
        if missing or unexpected or len(set(header)) != len(header):
            raise StudyError(
                f"price file {origin}: the header is {_clip(','.join(header))!r}; expected each of {', '.join(REQUIRED)} once"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (f"; unknown: {_clip(', '.join(unexpected))}" if unexpected else "")
                + f". Optional: {', '.join(name for name in Price.model_fields if name not in REQUIRED)}."
            )
        for row in reader:
            if len(prices) >= MAX_ROWS:
                raise StudyError(f"price file {origin}: more than {MAX_ROWS} rows: keep the ones you use.")
            price = _row(row, f"price file {origin}, line {reader.line_num}")
            if _key(price) in prices:
                raise StudyError(
                    f"price file {origin}, line {reader.line_num}: {price.name} ({price.service}) stands twice."
                )
            prices[_key(price)] = price
    except csv.Error as error:
        raise StudyError(f"price file {origin}, line {reader.line_num}: not CSV: {error}.") from error
    return tuple(prices.values())


def _row(row: Mapping[str | None, str | list[str] | None], where: str) -> Price:
    if None in row or None in row.values():
        raise StudyError(f"{where}: the number of cells differs from the header's {len(row) - (None in row)}.")
    cells = {name: value.strip() for name, value in row.items() if name is not None and isinstance(value, str)}
    try:
        return Price.model_validate({name: value for name, value in cells.items() if value})
    except ValidationError as error:
        problem = error.errors()[0]
        column = str(problem["loc"][0]) if problem["loc"] else "row"
        got = _clip(cells.get(column, ""))
        raise StudyError(f"{where}, column {column}: got {got!r}: {problem['msg']}.") from error
    except ValueError as error:
        raise StudyError(f"{where}: {error}.") from error


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise StudyError(f"price file {path}: no such file.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StudyError(f"price file {path}: cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise StudyError(f"price file {path}: larger than {MAX_BYTES / 1e6:g} MB: keep the rows you use.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"price file {path}: not UTF-8 at byte {error.start}: save it as UTF-8 CSV.") from error


def _key(price: Price) -> _Key:
    return price.provider.casefold(), price.service, price.sku.casefold(), price.region


def _clip(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
