"""The price book: finding, ageing, and user files that are wrong or hostile."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from profiler.cost import prices as module
from profiler.cost.prices import load_prices, parse_prices
from profiler.errors import StudyError

HEADER = "provider,sku,region,unit,price,date,source\n"
ROW = "lab,box-1,rack,USD/h,0.25,2026-05-01,invoice 7\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "own.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_prices_are_found_in_any_case_and_without_azures_prefix():
    """`find` reads what people type."""
    book = load_prices()

    assert book.find("AWS:C7I.LARGE").name == "aws:c7i.large@us-east-1"
    assert book.find("azure:d4s_v5").name == "azure:Standard_D4s_v5@eastus"
    assert book.find("aws:c7i.large@us-east-1").price == book.find("aws:c7i.large").price


def test_on_demand_is_preferred_to_spot():
    """A spot machine may vanish: its price is given only when asked for."""
    book = load_prices()

    assert book.find("gcp:g2-standard-4").service == "gce-on-demand"
    assert book.find("gcp:g2-standard-4", service="gce-spot").price < book.find("gcp:g2-standard-4").price


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c7i.large", "expected provider:sku"),
        ("aws:", "expected provider:sku"),
        ("aws:c7i.lrge", r"Near names: c7i\.large"),
        ("aws:c7i.large@mars-1", r"no price for 'aws:c7i.large@mars-1'.*us-east-1"),
        ("azure:D4s", "Standard_D4s_v5"),
        ("aww:c7i.large", r"unknown provider 'aww'\. Did you mean aws"),
    ],
)
def test_an_unknown_machine_is_answered_with_near_ones(text: str, message: str):
    """The error shows what came and what is near, in bounded length."""
    with pytest.raises(StudyError, match=message) as error:
        load_prices().find(text)
    assert len(str(error.value)) < 800


def test_only_machines_have_an_hourly_price():
    """A price per GB is never divided by 3600."""
    with pytest.raises(StudyError, match="USD/kWh"):
        _ = load_prices().find("grid:US average commercial").usd_per_hour


def test_age_counts_from_the_first_day_of_a_partial_date():
    """Without a day, the oldest reading counts."""
    price = load_prices().find("grid:US average commercial")

    assert price.date == "2026-04"
    assert price.age_days(date(2026, 4, 11)) == 10


def test_old_prices_warn_and_current_ones_do_not():
    """180 days are fine, 181 are told with date and age."""
    price = load_prices().find("aws:c7i.large")

    assert price.date == "2026-07-20"
    assert price.stale_warning(date(2027, 1, 16)) is None
    warning = price.stale_warning(date(2027, 1, 17))
    assert warning is not None
    assert "2026-07-20, 181 days ago" in warning


def test_own_prices_are_added_and_win(tmp_path: Path):
    """A user's price replaces the shipped one of the same machine, region and service."""
    header = "provider,service,sku,region,unit,price,date,source\n"
    own = header + "aws,ec2-on-demand-linux,c7i.large,us-east-1,USD/h,0.05,2026-11,contract\n"

    book = load_prices(write(tmp_path, own))

    assert book.find("aws:c7i.large").price == 0.05
    assert len(book) == len(load_prices())


def test_own_machines_become_known(tmp_path: Path):
    """A rented box of another provider is a row in a file; a byte order mark does no harm."""
    book = load_prices(write(tmp_path, b"\xef\xbb\xbf" + (HEADER + ROW).encode()))

    assert book.find("lab:box-1").usd_per_hour == 0.25


def test_a_machine_sold_in_two_regions_must_name_one(tmp_path: Path):
    """No silent choice between prices."""
    book = load_prices(write(tmp_path, HEADER + ROW + ROW.replace("rack", "shelf").replace("0.25", "0.5")))

    with pytest.raises(StudyError, match=r"lab:box-1@rack.*lab:box-1@shelf"):
        book.find("lab:box-1")
    assert book.find("lab:box-1@shelf").price == 0.5


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf", "-inf", "1e999", "free", "", "1,5", "0x10", "1 USD"])
def test_only_finite_positive_numbers_are_prices(price: str):
    """Zero, negative, not-a-number and unbounded prices would win or poison every comparison."""
    with pytest.raises(StudyError, match=r"price file own\.csv, line 3"):
        parse_prices(HEADER + ROW + ROW.replace("0.25", price).replace("box-1", "box-2"), "own.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("lab,box-2,rack,USD/h,1,2026-13-01,invoice\n", "line 3, column date"),
        ("lab,box-2,rack,USD/h,1,yesterday,invoice\n", "line 3, column date"),
        ("lab,box-2,rack,USD/h,1,2026-05-01,\n", "line 3, column source"),
        ("lab,box-2,rack,USD/h,1,2026-05-01\n", "line 3: the number of cells"),
        ("lab,box-2,rack,USD/h,1,2026-05-01,a,b,c\n", "line 3: the number of cells"),
        ("lab,box\x1b[2J,rack,USD/h,1,2026-05-01,invoice\n", "line 3, column sku"),
        (f"lab,{'x' * 600},rack,USD/h,1,2026-05-01,invoice\n", "line 3, column sku"),
        (f"lab,{'x' * 200_000},rack,USD/h,1,2026-05-01,invoice\n", "not CSV"),
        ('lab,"box,rack,USD/h,1,2026-05-01,invoice\n', "not CSV"),
        (ROW, "line 3: lab:box-1@rack .* stands twice"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(row: str, message: str):
    """Each complaint names the file, the line and, where there is one, the column; it never echoes the whole cell."""
    with pytest.raises(StudyError, match=message) as error:
        parse_prices(HEADER + ROW + row, "own.csv")
    assert len(str(error.value)) < 500
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "header", ["", "\n", "provider,sku\n", HEADER.replace("price", "cost"), HEADER.replace("sku", "unit")]
)
def test_a_wrong_header_is_refused_with_the_columns_expected(header: str):
    """The error tells the required columns."""
    with pytest.raises(StudyError, match="expected each of provider, sku, unit, price, date, source"):
        parse_prices(header + ROW, "own.csv")


def test_files_that_are_no_text_files_are_refused(tmp_path: Path):
    """Missing files, folders, devices and binaries each get their sentence."""
    with pytest.raises(StudyError, match="no such file"):
        load_prices(tmp_path / "absent.csv")
    with pytest.raises(StudyError, match="no such file"):
        load_prices(tmp_path)
    with pytest.raises(StudyError, match="no such file"):
        load_prices(Path("/dev/zero"))
    with pytest.raises(StudyError, match="not UTF-8"):
        load_prices(write(tmp_path, b"\xff\xfe\x00"))


def test_too_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bytes and rows have a limit."""
    with pytest.raises(StudyError, match="larger than 5 MB"):
        load_prices(write(tmp_path, HEADER + "x" * module.MAX_BYTES))
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    with pytest.raises(StudyError, match="more than 1 rows"):
        parse_prices(HEADER + ROW + ROW.replace("box-1", "box-2"), "own.csv")
