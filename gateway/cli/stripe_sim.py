"""`stripemeter stripe-sim`: run the Stripe simulator alone, in the foreground.

It must not know what the simulator does.
"""

from __future__ import annotations

import secrets
import signal
from functools import partial
from pathlib import Path

import click
import trio

from gateway.simulator.journal import SimulatorRefused
from gateway.simulator.ledger import Limits, Settings
from gateway.simulator.serving import Simulator, serve_simulator
from gateway.system import SystemClock
from gateway.terminal.options import json_option
from gateway.terminal.output import print_json


@click.command("stripe-sim")
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on.",
)
@click.option(
    "--port",
    metavar="PORT",
    default=12111,
    type=int,
    show_default=True,
    help="Port; 0 picks a free one.",
)
@click.option(
    "--data-dir",
    metavar="DIR",
    default="data/simulator",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where its state lies.",
)
@click.option(
    "--seed", metavar="TEXT", default="", help="What chance follows; a new directory makes its own."
)
@click.option(
    "--auto-create",
    is_flag=True,
    help="Make customers on first sight, and meters of every event name.",
)
@click.option(
    "--meter",
    "meters",
    metavar="NAME",
    multiple=True,
    help="Have a `sum` meter of this event name.",
)
@click.option(
    "--lag",
    default="0",
    show_default=True,
    metavar="SECONDS[-SECONDS]",
    help="How long usage stays out of summaries, evenly between the two.",
)
@click.option("--no-limits", is_flag=True, help="Without Stripe's rate limits.")
@click.option("--webhook-url", metavar="URL", help="Where all webhooks go.")
@click.option(
    "--webhook-secret",
    metavar="SECRET",
    envvar="STRIPE_SIM_WEBHOOK_SECRET",
    default="whsec_simulator",
    show_default=True,
    help="What they are signed with.",
)
@json_option
def command(
    *,
    host: str,
    port: int,
    data_dir: Path,
    seed: str,
    auto_create: bool,
    meters: tuple[str, ...],
    lag: str,
    no_limits: bool,
    webhook_url: str | None,
    webhook_secret: str,
    as_json: bool,
) -> int:
    r"""Run a Stripe that forgets no money: the part of its API that usage billing touches, with faults on demand.

    \b
    Examples:
      stripemeter stripe-sim
      stripemeter stripe-sim --auto-create --lag 5-30
      curl -s --json '{"kind": "rate_limited", "count": 3}' http://127.0.0.1:12111/_sim/faults

    Point a Stripe client's base address at it; it takes any key, keeps none, and sends nothing to Stripe. Its page
    on / shows meters, customers, totals and the last requests. The directory survives kill -9 and belongs to one
    process.

    \b
    Exit codes:
      0  stopped by a signal
      1  the directory or the port can't be had
      2  wrong usage
    """
    least, most = _lag(lag)
    settings = Settings(
        seed=seed,
        lag_seconds_min=least,
        lag_seconds_max=most,
        auto_create=auto_create,
        meters=(*meters, "*") if auto_create else meters,
        limits=None if no_limits else Limits(),
        webhook_url=webhook_url,
        webhook_secret=webhook_secret,
    )
    try:
        trio.run(partial(_run, data_dir, host, port, settings, as_json=as_json))
    except* SimulatorRefused as group:
        refused: BaseException = group
        while isinstance(refused, BaseExceptionGroup):
            refused = refused.exceptions[0]
        raise click.ClickException(str(refused)) from None
    return 0


def _lag(text: str) -> tuple[float, float]:
    least, _, most = text.partition("-")
    try:
        found = float(least), float(most or least)
    except ValueError:
        found = -1.0, -1.0
    if not 0 <= found[0] <= found[1]:
        message = f"--lag {text}: seconds, or a range of them such as 5-30"
        raise click.UsageError(message)
    return found


async def _run(data_dir: Path, host: str, port: int, settings: Settings, *, as_json: bool) -> None:
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Simulator]) -> None:
            await serve_simulator(
                data_dir,
                host,
                port,
                settings,
                now_us=SystemClock().now_us,
                fresh_seed=lambda: secrets.token_hex(8),
                task_status=task_status,
            )

        simulator = await nursery.start(serve)
        if as_json:
            print_json({"url": simulator.base_url, "account": simulator.account})
        else:
            _show(simulator.base_url, simulator.account)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                nursery.cancel_scope.cancel()
                break


def _show(base_url: str, account: str) -> None:
    click.echo(
        f"The Stripe simulator is ready on {base_url} (account {account}).\n"
        f"It takes any key and sends nothing to Stripe. Its page: {base_url}/"
    )
