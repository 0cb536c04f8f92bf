"""`stripemeter openapi`: the API's description, without a server. It must not know any endpoint."""

from __future__ import annotations

from pathlib import Path

import click

from engine.errors import EngineError
from gateway.terminal.options import json_option


@click.command("openapi")
@click.option("--output", "-o", metavar="FILE", help="Write it to a file.")
@json_option
def command(*, output: str | None, as_json: bool) -> int:  # noqa: ARG001 - it is JSON in any case
    r"""Print the OpenAPI 3.1 document of this version's API: the same that a server has at /openapi.json.

    \b
    Examples:
      stripemeter openapi > openapi.json
      stripemeter openapi -o openapi.json
    """
    # Here: the table of all endpoints takes half a second to load, and help should not wait for it.
    from gateway.table import openapi_document  # noqa: PLC0415

    document = openapi_document() + b"\n"
    if output is None:
        click.echo(document, nl=False)
        return 0
    try:
        Path(output).write_bytes(document)
    except OSError as error:
        message = f"{output} can't be written: {error.strerror}"
        raise EngineError(message) from error
    return 0
