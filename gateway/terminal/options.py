"""The options that several commands have, each under one name, with one text and one variable.

Rules it keeps: what is named on the command line wins over a variable; where both are named, a server wins over a data
directory. It must not know any command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from engine.config import Settings
from gateway.admin_client import AdminClient, url_of
from gateway.environment import read_settings

URL_VARIABLE: Final = "STRIPEMETER_URL"
API_KEY_VARIABLE: Final = "STRIPEMETER_API_KEY"
TENANT_VARIABLE: Final = "STRIPEMETER_TENANT"
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
Decorator = Callable[[FunctionT], FunctionT]


def all_of(*decorators: Callable[[Any], Any]) -> Callable[[FunctionT], FunctionT]:
    """Several options as one decorator, shown in this order."""

    def decorate(function: FunctionT) -> FunctionT:
        for one in reversed(decorators):
            function = one(function)
        return function

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; errors too.")


def url_option(what: str = "The server") -> Callable[[FunctionT], FunctionT]:
    """`--url`."""
    text = f"{what} ({URL_VARIABLE}; else where the settings say that it listens)."
    return click.option("--url", metavar="URL", envvar=URL_VARIABLE, help=text)


def api_key_option(scope: str) -> Callable[[FunctionT], FunctionT]:
    """`--api-key`; `scope` says what the key must be allowed."""
    text = f"A key with the scope {scope} ({API_KEY_VARIABLE})."
    return click.option("--api-key", metavar="KEY", envvar=API_KEY_VARIABLE, help=text)


def server_options(scope: str) -> Callable[[FunctionT], FunctionT]:
    """The options of what asks a running server: `url`, `api_key`, `as_json`."""
    return all_of(url_option(), api_key_option(scope), json_option)


def data_dir_option(what: str = "The data directory") -> Callable[[FunctionT], FunctionT]:
    """`--data-dir`."""
    return click.option("--data-dir", metavar="DIR", help=f"{what} (STRIPEMETER_DATA_DIR).")


def place_options(scope: str) -> Callable[[FunctionT], FunctionT]:
    """The options of what works on a stopped server's directory, or else asks a server: `data_dir`, `url`, `api_key`."""
    return all_of(
        data_dir_option("A stopped server's data directory"),
        url_option("The server to ask instead"),
        api_key_option(scope),
    )


tenant_option = click.option(
    "--tenant",
    metavar="ID",
    envvar=TENANT_VARIABLE,
    help=f"The tenant ({TENANT_VARIABLE}); a tenant's own API key needs none.",
)
metric_option = click.option("--metric", metavar="NAME", help="Only this metric.")
customer_option = click.option("--customer", metavar="REF", help="Only this customer.")
period_option = click.option(
    "--period", metavar="YYYY-MM", help="The month in which periods begin; without it now's."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def watch_option(seconds: float) -> Callable[[FunctionT], FunctionT]:
    """`--watch`."""
    text = f"Again every {seconds:g} s, until Ctrl-C."
    return click.option("--watch", is_flag=True, help=text)


def chosen_url(url: str | None, data_dir: str | None) -> str | None:
    """The server that was named, if one was; a directory named on the command line wins over the variable."""
    ctx = click.get_current_context(silent=True)
    is_variable = ctx is not None and ctx.get_parameter_source("url") == ParameterSource.ENVIRONMENT
    return None if data_dir is not None and is_variable else url


def settings_for(data_dir: str | None) -> Settings:
    """The settings in force, with the directory that was named."""
    return read_settings({"STRIPEMETER_DATA_DIR": data_dir} if data_dir else {})


def client_of(
    url: str | None, api_key: str | None, settings: Settings | None = None
) -> AdminClient:
    """A client of the server that is meant: the given one, or that of the settings."""
    settings = settings or read_settings()
    return AdminClient(url or url_of(settings), api_key or settings.admin_key)
