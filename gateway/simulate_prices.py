"""`stripemeter simulate to-stripe` and `simulate backtest`: a price as Stripe takes it, and what it would have changed.

Rules they keep: a file is read with exact numbers; results go to stdout, everything else to stderr. They must not know
how a price is computed, nor how recorded usage is priced: a running server is asked.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from engine.core.exact_json import exact_json
from engine.errors import EngineError
from engine.pricing.documents import price_document, read_price
from engine.pricing.errors import PricingError
from engine.pricing.invoice import UsageItem
from engine.pricing.prices import PriceConfig
from engine.pricing.scenarios import read_scenario
from engine.pricing.stripe_prices import to_stripe
from gateway.backtest_output import draw, picture_path, show, write_csv
from gateway.backtests import CUSTOMERS_DEFAULT, CUSTOMERS_MAX, BacktestView
from gateway.scenario_files import FileUnreadable, json_text, read
from gateway.terminal.options import (
    client_of,
    customer_option,
    json_option,
    server_options,
    tenant_option,
)
from gateway.terminal.output import console, print_json

BACKTEST_SECONDS_MAX: Final = 120
Prices = dict[str, PriceConfig]


def read_prices(path: Path) -> Prices | PriceConfig:
    """The price, or the prices by metric, in a file: a configuration, a map of them, or a scenario with its items.

    Raises EngineError, one line for all that is wrong.
    """
    if not path.is_file():
        raise FileUnreadable(f"{path}: there is no such file")
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise FileUnreadable(f"{path}: must end in .json, .yaml or .yml")
    document = read(path)
    try:
        if not isinstance(document, dict) or not document:
            raise PricingError([("document", "must be a price configuration, or one a metric")])
        if "inputs" in document:
            return _of_items(read_scenario(document).inputs.usage_items)
        if "model" in document and not isinstance(document["model"], dict):
            return read_price(document)
        return {metric: read_price(one, metric) for metric, one in document.items()}
    except PricingError as error:
        raise EngineError(f"{path}: {error}") from error


def _of_items(items: Sequence[UsageItem]) -> Prices:
    """The prices of a scenario's items. Raises PricingError when a metric has two."""
    prices: Prices = {}
    for index, item in enumerate(items):
        if prices.setdefault(item.metric, item.price) != item.price:
            field = f"inputs.usageItems[{index}].priceConfig"
            raise PricingError([(field, f"is a second price of {item.metric}: keep one")])
    return prices


@click.command("to-stripe", short_help="What to create in Stripe for a price.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--product", metavar="ID", help="The product (prod_...) that the price is of.")
@click.option("--meter", metavar="ID", help="The billing meter (mtr_...) that counts it.")
@click.option("--interval", type=click.Choice(("day", "week", "month", "year")), default="month",
              show_default=True, help="How often the price is billed.")  # fmt: skip
@click.option("--curl", "as_curl", is_flag=True, help="Print the request as a curl command.")
@json_option
def to_stripe_command(
    *,
    file: Path,
    product: str | None,
    meter: str | None,
    interval: str,
    as_curl: bool,
    as_json: bool,  # noqa: ARG001 - it is JSON unless it is curl
) -> int:
    r"""Print the parameters of Stripe's `POST /v1/prices` that bill as the price in FILE does, to the cent.

    FILE holds a price configuration, one a metric, or a scenario (its usage items' prices); JSON or YAML. Nothing is
    sent to Stripe.

    \b
    Examples:
      stripemeter simulate to-stripe new.yaml --product prod_1 --meter mtr_1
      stripemeter simulate to-stripe plan.sim.yaml --curl

    \b
    Exit codes:
      0  printed
      1  the file can't be read, or Stripe has no such price (a minimum or maximum charge, a fraction): stderr says which
    """
    found = read_prices(file)
    prices = found if isinstance(found, dict) else {"": found}
    made: dict[str, dict[str, object]] = {}
    for metric, price in prices.items():
        try:
            made[metric] = to_stripe(
                price, product=product, meter=meter, interval=interval, nickname=metric or None
            )
        except PricingError as error:
            raise EngineError(f"{file}: {f'{metric}: ' if metric else ''}{error}") from error
    if as_curl:
        for params in made.values():
            click.echo(_curl(params))
        return 0
    click.echo(json_text(made if isinstance(found, dict) else made[""]))
    return 0


def _curl(params: dict[str, object]) -> str:
    rows = [f"  -d {shlex.quote(f'{name}={value}')}" for name, value in _form(params, "")]
    return " \\\n".join(['curl https://api.stripe.com/v1/prices -u "$STRIPE_SECRET_KEY:"', *rows])


def _form(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Stripe's form fields: `tiers[0][up_to]`."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _form(one, f"{name}[{key}]" if name else key)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _form(one, f"{name}[{index}]")
    else:
        yield name, value


@click.command("backtest", short_help="What a price would have changed.")
@click.option("--price", "file", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The candidate's price.")  # fmt: skip
@click.option("--since", required=True, metavar="TIME", help="Periods that begin here or later.")
@click.option("--until", metavar="TIME", help="Periods that begin before; without it now.")
@tenant_option
@customer_option
@click.option("--metric", metavar="NAME", help="Whose price FILE has, if it has a single one.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write all rows; - is standard output.")
@click.option("--plot", metavar="FILE", help="Draw it: a name that ends in .png or .svg.")
@server_options("simulation:write")
def backtest_command(
    *,
    file: Path,
    since: str,
    until: str | None,
    tenant: str | None,
    customer: str | None,
    metric: str | None,
    csv_file: str | None,
    plot: str | None,
    as_json: bool,
    url: str | None,
    api_key: str | None,
) -> int:
    r"""Price recorded usage as today and with the prices in FILE: revenue by month, who pays less, who pays more.

    FILE holds a price configuration, one a metric, or a scenario; JSON or YAML. Times are days (2026-01-01), instants,
    or durations from now (-P90D). A picture needs matplotlib: pip install 'stripemeter[plots]'.

    \b
    Examples:
      stripemeter simulate backtest --price new.yaml --since 2026-01-01 --tenant acme
      stripemeter simulate backtest --price new.yaml --since -P365D --tenant acme --csv changes.csv --plot changes.svg

    \b
    Exit codes:
      0  everything was compared
      1  something could not be compared and is left out (the answer says what), or the server could not be asked
    """
    picture = None if plot is None else picture_path(plot)
    prices = read_prices(file)
    body: dict[str, Any] = {"since": since, "priceConfig": _document(prices)}
    wanted = {"until": until, "tenantId": tenant, "customerRef": customer, "metric": metric}
    body |= {name: value for name, value in wanted.items() if value is not None}
    body["limit"] = CUSTOMERS_DEFAULT if csv_file is None else CUSTOMERS_MAX
    found = client_of(url, api_key).ask(
        "POST",
        "/v1/simulations/backtest",
        BacktestView,
        body,
        seconds_max=BACKTEST_SECONDS_MAX,
    )
    if picture is not None:
        draw(picture, found)
    if csv_file == "-":
        write_csv(sys.stdout, found)
    elif csv_file is not None:
        with Path(csv_file).open("w", encoding="utf-8", newline="") as rows:
            write_csv(rows, found)
    if as_json:
        print_json(found)
    elif csv_file != "-":
        show(console(), found)
    return 0 if found.complete else 1


def _document(prices: Prices | PriceConfig) -> msgspec.Raw:
    if isinstance(prices, PriceConfig):
        return msgspec.Raw(exact_json(price_document(prices)))
    by_metric = {metric: price_document(price) for metric, price in prices.items()}
    return msgspec.Raw(exact_json(by_metric))
