"""A backtest for a person: tables for the terminal, CSV rows, and a picture when matplotlib is there.

Rules it keeps: amounts are shown with the digits they came with; a cell of CSV that a spreadsheet would run is escaped;
matplotlib is loaded only for a picture, and its absence is one line that says what to install. It must not know where
the result comes from.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.text import Text

from engine.core.csv_cells import text_cell
from engine.errors import EngineError
from gateway.backtests import BacktestView, BandView, CustomerChange
from gateway.terminal.output import Column, Row, number_columns, print_table

PICTURES: Final = (".png", ".svg")
MISSING: Final = "a picture needs matplotlib, which is not installed: pip install 'stripemeter[plots]', or leave out --plot"
_AMOUNTS: Final = ("today", "candidate", "difference")
SHOWN_MAX: Final = 20
"""Winners and losers in the table; CSV has all."""
CSV_COLUMNS: Final = ("part", "name", "today", "candidate", "difference", "currency")
_TODAY, _CANDIDATE = "#7f8c9a", "#2f6fb0"


def show(console: Console, found: BacktestView) -> None:
    """Print the result as tables."""
    where = "" if found.customer_ref is None else f", customer {found.customer_ref}"
    console.print(
        Text(
            f"{found.tenant_id}{where}: periods from {found.since} to {found.until}, {found.counters} totals"
        )
    )
    columns = (Column("month"), *number_columns(f"today ({found.currency})", *_AMOUNTS[1:]))
    rows = [
        Row((one.month, _digits(one.today), _digits(one.candidate), _signed(one.difference)))
        for one in found.months
    ]
    total = found.total
    amounts = (_digits(total.today), _digits(total.candidate), _signed(total.difference))
    print_table(columns, [*rows, Row(("total", *amounts), "bold")], console, footer=True)
    _show_customers(console, "would pay less", found.winners, found.winners_total)
    _show_customers(console, "would pay more", found.losers, found.losers_total)
    bands = [
        Row((band_text(band), str(band.customers))) for band in found.distribution if band.customers
    ]
    if bands:
        console.print()
        columns = (Column("change of a customer's bill"), *number_columns("customers"))
        print_table(columns, bands, console)
    console.print(Text(f"{found.same} would pay the same"))
    for left in found.skipped:
        metrics = ", ".join(left.metrics[:10])
        words = f"left out: {left.counters} totals of {left.customers} customers ({metrics}): {left.reason}"
        console.print(Text(words, style="yellow"))
    for metric in found.unused_metrics:
        console.print(Text(f"nobody used {metric} in this range", style="yellow"))


def _show_customers(
    console: Console, title: str, rows: list[CustomerChange], how_many: int
) -> None:
    if not rows:
        return
    console.print(Text(f"\n{how_many} {title}"))
    shown = []
    for one in rows[:SHOWN_MAX]:
        amounts = (_digits(one.today), _digits(one.candidate), _signed(one.difference))
        shown.append(Row((one.customer_ref, *amounts)))
    print_table((Column("customer"), *number_columns(*_AMOUNTS)), shown, console)
    if how_many > SHOWN_MAX:
        console.print(Text(f"and {how_many - SHOWN_MAX} more"))


def band_text(band: BandView) -> str:
    """A band in words."""
    above, up_to = band.above_percent, band.up_to_percent
    if above is None and up_to is None:
        return "pays nothing today"
    if above is None:
        return f"at most {up_to:+d} %"
    if up_to is None:
        return f"more than {above:+d} %"
    return f"{_percent(above)} to {_percent(up_to)}"


def _percent(value: int) -> str:
    return f"{value:+d} %" if value else "0 %"


def write_csv(file: TextIO, found: BacktestView) -> None:
    """Every month, every customer that was listed, and the total, one row each."""
    rows = csv.writer(file)
    rows.writerow(CSV_COLUMNS)
    for month in found.months:
        rows.writerow(
            (
                "month",
                month.month,
                *map(_digits, (month.today, month.candidate, month.difference)),
                found.currency,
            )
        )
    for one in (*found.winners, *found.losers):
        amounts = map(_digits, (one.today, one.candidate, one.difference))
        rows.writerow(("customer", text_cell(one.customer_ref), *amounts, found.currency))
    total = found.total
    amounts = map(_digits, (total.today, total.candidate, total.difference))
    rows.writerow(("total", "TOTAL", *amounts, found.currency))


def picture_path(text: str) -> Path:
    """Where a picture goes. Raises EngineError for a name that is no picture's, or without matplotlib."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise EngineError(f"{path}: a picture's name ends in {' or '.join(PICTURES)}")
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise EngineError(MISSING) from error
    return path


def draw(path: Path, found: BacktestView) -> None:
    """Revenue by month, and how customers' bills change, as a picture. Raises EngineError when it can't be written."""
    matplotlib: Any = importlib.import_module("matplotlib")
    figure_module: Any = importlib.import_module("matplotlib.figure")
    figure: Any = figure_module.Figure(figsize=(11, 4.5), layout="constrained")
    by_month, by_band = figure.subplots(1, 2)
    places = range(len(found.months))
    for shift, label, color in ((-0.2, "today", _TODAY), (0.2, "candidate", _CANDIDATE)):
        heights = [float(_digits(getattr(one, label))) for one in found.months]
        by_month.bar([place + shift for place in places], heights, 0.4, label=label, color=color)
    by_month.set_xticks(list(places), [one.month for one in found.months], rotation=45, ha="right")
    by_month.set_ylabel(found.currency)
    by_month.set_title("Revenue by month", loc="left")
    by_month.legend(frameon=False)
    bands = [band for band in found.distribution if band.customers]
    labels = [band_text(band) for band in bands]
    by_band.barh(labels, [band.customers for band in bands], color=_CANDIDATE)
    by_band.invert_yaxis()
    by_band.set_xlabel("customers")
    by_band.set_title(f"Change of a customer's bill ({found.same} stay the same)", loc="left")
    for one in (by_month, by_band):
        one.spines[["top", "right"]].set_visible(False)
    try:
        # Ids in an SVG are random otherwise: the same result is the same file.
        with matplotlib.rc_context({"svg.hashsalt": "stripemeter"}):
            figure.savefig(path, dpi=150, metadata=_dateless(path))
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from error


def _dateless(path: Path) -> dict[str, None] | None:
    """Without the time of drawing, so that the same result is the same file."""
    return {"Date": None} if path.suffix.lower() == ".svg" else None


def _digits(raw: Any) -> str:
    text = bytes(raw).decode().strip('"')
    return "" if text == "null" else text


def _signed(raw: Any) -> Text:
    text = _digits(raw)
    if not text or text.startswith("-"):
        return Text(text, style="red" if text else "")
    return Text(f"+{text}" if text.strip("0.") else text)
