"""`stripemeter simulate`: price scenarios from files, and say where an invoice is not what was expected of it.

Rules it keeps: results go to stdout, problems of files to stderr, each under its file and field; the exit code says which
kind of problem there was (the help lists them), the worst one wins. It must not know how a price is computed
(engine.pricing) nor how a file is read (gateway.scenario_files).
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import click
from rich.console import Console
from rich.text import Text

from engine.pricing import PricingError, invoice_document
from engine.pricing.explain import explain_line
from engine.pricing.money import plain_text
from engine.pricing.scenarios import Outcome, Scenario, Value, read_scenario, record, run
from gateway.scenario_files import SUFFIXES, FileUnreadable, find, json_text, read, write_expected
from gateway.simulate_prices import backtest_command, to_stripe_command
from gateway.terminal.family import group
from gateway.terminal.options import json_option
from gateway.terminal.output import (
    Column,
    Row,
    console,
    number_columns,
    print_table,
    text_columns,
)

EXIT_OK: Final = 0
EXIT_DIFFERENCES: Final = 1
EXIT_INVALID: Final = 2

_Command = TypeVar("_Command", bound=Callable[..., int])


class _Loaded(NamedTuple):
    """A file and its scenario."""

    path: Path
    scenario: Scenario


@group("simulate")
def command() -> None:
    r"""Price scenarios from files and compare the invoices with what is expected of them.

    A scenario is a file that ends in .sim.json, .sim.yaml or .sim.yml: `inputs` (customer, period, usage items with their
    prices, commitments, credits, tax), `expected` (any part of the invoice) and `tolerances`. Nothing else is needed: no
    server, no data directory, no Stripe key; `backtest` alone asks a server, since it has the usage.

    \b
    Examples:
      stripemeter simulate validate prices/
      stripemeter simulate run prices/ --fail-on-diff
      stripemeter simulate report prices/new-plan.sim.yaml
      stripemeter simulate run prices/new-plan.sim.yaml --record
      stripemeter simulate to-stripe prices/new-plan.sim.yaml --meter mtr_1
      stripemeter simulate backtest --price prices/new.yaml --since 2026-01-01 --tenant acme
    """


command.add_command(to_stripe_command)
command.add_command(backtest_command)


_files = click.argument(
    "paths", metavar="FILES...", nargs=-1, required=True, type=click.Path(path_type=Path)
)


def _comparing(function: _Command) -> _Command:
    """The arguments that `run` and `report` share."""
    options = (
        _files,
        json_option,
        click.option(
            "--record",
            "is_recorded",
            is_flag=True,
            help="Write each invoice into its file as `expected`.",
        ),
        click.option("--fail-on-diff", is_flag=True, help="Exit with 1 when an invoice differs."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command("validate", short_help="Are these files scenarios?")
@_files
@json_option
def validate(paths: tuple[Path, ...], *, as_json: bool) -> int:
    r"""Read the files and name everything that is wrong in them; no invoice is computed.

    FILES are files, or directories with files that end in .sim.json, .sim.yaml or .sim.yml.

    \b
    Examples:
      stripemeter simulate validate prices/
      stripemeter simulate validate prices/new-plan.sim.yaml --json

    \b
    Exit codes:
      0  all are valid
      2  a file can't be read, or is no valid scenario
    """
    loaded, problems = _load(paths)
    if as_json:
        valid = [{"file": str(one.path), "name": one.scenario.name} for one in loaded]
        click.echo(json_text({"valid": valid, "problems": problems}))
    else:
        _tell(problems)
        click.echo(f"{len(loaded)} valid, {len({one['file'] for one in problems})} not")
    return EXIT_INVALID if problems else EXIT_OK


@command.command("run", short_help="Compute the invoices, show what differs.")
@_comparing
def run_(paths: tuple[Path, ...], *, as_json: bool, is_recorded: bool, fail_on_diff: bool) -> int:
    r"""Compute each scenario's invoice and show every field that differs from `expected` by more than its tolerance.

    FILES are files, or directories with files that end in .sim.json, .sim.yaml or .sim.yml.

    \b
    Examples:
      stripemeter simulate run prices/ --fail-on-diff
      stripemeter simulate run prices/new-plan.sim.yaml --record

    \b
    Exit codes:
      0  every file was read, and nothing differs (or --fail-on-diff was not given)
      1  --fail-on-diff, and an invoice differs from what is expected
      2  a file can't be read, or is no valid scenario: stderr names file and field
    """
    return _compare(
        paths, _show_short, as_json=as_json, is_recorded=is_recorded, fail_on_diff=fail_on_diff
    )


@command.command("report", short_help="The same, with the invoices line by line.")
@_comparing
def report(paths: tuple[Path, ...], *, as_json: bool, is_recorded: bool, fail_on_diff: bool) -> int:
    r"""Show each scenario's invoice, every line with the parts that it is the sum of, and what differs.

    FILES are files, or directories with files that end in .sim.json, .sim.yaml or .sim.yml.

    \b
    Examples:
      stripemeter simulate report prices/new-plan.sim.yaml

    \b
    Exit codes:
      0  every file was read, and nothing differs (or --fail-on-diff was not given)
      1  --fail-on-diff, and an invoice differs from what is expected
      2  a file can't be read, or is no valid scenario: stderr names file and field
    """
    return _compare(
        paths, _show_long, as_json=as_json, is_recorded=is_recorded, fail_on_diff=fail_on_diff
    )


_Problems = list[dict[str, str]]


def _load(paths: tuple[Path, ...]) -> tuple[list[_Loaded], _Problems]:
    """All scenarios that are valid, and the problems of the others."""
    loaded: list[_Loaded] = []
    problems: _Problems = []
    try:
        files = find(paths)
    except FileUnreadable as error:
        return [], [{"file": "", "field": "", "message": str(error)}]
    for path in files:
        try:
            title = path.name
            for suffix in SUFFIXES:
                title = title.removesuffix(suffix)
            loaded.append(_Loaded(path, read_scenario(read(path), default_name=title)))
        except PricingError as error:
            problems += [
                {"file": str(path), "field": field, "message": message}
                for field, message in error.errors
            ]
        except FileUnreadable as error:
            problems.append({"file": str(path), "field": "", "message": str(error)})
    return loaded, problems


def _tell(problems: _Problems) -> None:
    for one in problems:
        text = (
            f"{one['file']}: {one['field']}: {one['message']}" if one["field"] else one["message"]
        )
        click.echo(text, err=True)


def _compare(
    paths: tuple[Path, ...],
    show: Callable[[Console, Path, Outcome], None],
    *,
    as_json: bool,
    is_recorded: bool,
    fail_on_diff: bool,
) -> int:
    loaded, problems = _load(paths)
    outcomes = [(path, run(scenario)) for path, scenario in loaded]
    if is_recorded:
        for path, outcome in outcomes:
            write_expected(path, record(outcome.invoice))
    failed = sum(not outcome.passed for _, outcome in outcomes)
    if as_json:
        runs = [_document(path, outcome) for path, outcome in outcomes]
        click.echo(
            json_text({"passed": not failed and not problems, "runs": runs, "problems": problems})
        )
    else:
        to = console()
        for path, outcome in outcomes:
            show(to, path, outcome)
        _tell(problems)
        words = f"{len(outcomes)} run, {failed} differ"
        to.print(Text(words + (", recorded" if is_recorded else "")))
    if problems:
        return EXIT_INVALID
    return EXIT_DIFFERENCES if failed and fail_on_diff else EXIT_OK


def _document(path: Path, outcome: Outcome) -> dict[str, object]:
    differences = [difference._asdict() for difference in outcome.differences]
    return {
        "file": str(path),
        "name": outcome.scenario.name,
        "passed": outcome.passed,
        "compared": outcome.compared,
        "differences": differences,
        "result": invoice_document(outcome.invoice),
    }


def _show_short(to: Console, path: Path, outcome: Outcome) -> None:
    total = f"{plain_text(outcome.invoice.total)} {outcome.invoice.currency}"
    if outcome.differences:
        verdict, style = f"{len(outcome.differences)} of {outcome.compared} fields differ", "red"
    elif outcome.compared:
        verdict, style = f"as expected, fields compared: {outcome.compared}", "green"
    else:
        verdict, style = "nothing is expected: --record writes it", "yellow"
    line = Text(f"{outcome.scenario.name} ({path}): total {total}, ")
    to.print(line.append(verdict, style=style))
    if outcome.differences:
        rows: list[Row] = []
        for one in outcome.differences:
            delta = "" if one.delta is None else f"{one.delta:+f}"
            rows.append(Row((one.field, _cell(one.expected), _cell(one.actual), delta)))
        columns = (Column("field"), *number_columns("expected", "actual", "difference"))
        print_table(columns, rows, to)


def _cell(value: Value) -> str:
    if isinstance(value, Decimal):
        return plain_text(value)
    return "none" if value is None else value


def _show_long(to: Console, path: Path, outcome: Outcome) -> None:
    invoice = outcome.invoice
    _show_short(to, path, outcome)
    columns = (*text_columns("line", "part"), *number_columns(f"amount ({invoice.currency})"))
    rows: list[Row] = []
    for line in invoice.line_items:
        rows.append(Row((line.metric, "", plain_text(line.subtotal)), "bold"))
        parts = explain_line(line)
        rows += [Row(("", f"{one.kind}: {one.text}", plain_text(one.amount))) for one in parts]
    rows.append(Row(("subtotal", "", plain_text(invoice.subtotal))))
    rows += [Row((one.kind, str(one.place + 1), plain_text(-one.amount))) for one in invoice.draws]
    rate = f"{plain_text(outcome.scenario.inputs.tax_rate)} %"
    rows.append(Row(("tax", rate, plain_text(invoice.tax))))
    rows.append(Row(("total", "", plain_text(invoice.total)), "bold"))
    print_table(columns, rows, to, footer=True)
