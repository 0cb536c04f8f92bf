"""Token usage of language models as events: `track_tokens(client, customer_ref, response)`.

Reads usage by its shape, from objects or dicts: OpenAI's chat (`prompt_tokens`) and responses (`input_tokens`, with
`input_tokens_details`), Anthropic's (`cache_read_input_tokens` beside `input_tokens`). Rules it keeps: each token counts in
exactly one metric, whatever a provider's own sums hold; a usage of an unknown shape is an error, never 0. It must not
know any provider's library.

Metrics: `llm_input_tokens` (neither read from a cache nor written to one), `llm_cached_tokens` (read from it),
`llm_cache_write_tokens`, `llm_output_tokens` (reasoning among them); each with meta {"model": ...}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from stripemeter.async_client import AsyncStripeMeterClient
from stripemeter.client import StripeMeterClient
from stripemeter.results import BatchResult


def tokens_of(response_or_usage: object) -> dict[str, int]:
    """Metric to tokens, those above 0. Raises ValueError for what has no usage of a known shape."""
    usage = _get(response_or_usage, "usage")
    if usage is None:
        usage = response_or_usage
    given = _count(usage, "input_tokens")
    output = _count(usage, "output_tokens")
    details = "input_tokens_details"
    if given is None and output is None:
        given = _count(usage, "prompt_tokens")
        output = _count(usage, "completion_tokens")
        details = "prompt_tokens_details"
    if given is None and output is None:
        message = "no token usage of a known shape: pass a response of the provider, or its usage"
        raise ValueError(message)
    read = _count(usage, "cache_read_input_tokens")
    written = _count(usage, "cache_creation_input_tokens") or 0
    if read is None:
        # OpenAI's sum holds the cached ones; Anthropic's does not.
        read = _count(_get(usage, details), "cached_tokens") or 0
        given = (given or 0) - read
    counts = {
        "llm_input_tokens": max(given or 0, 0),
        "llm_cached_tokens": read,
        "llm_cache_write_tokens": written,
        "llm_output_tokens": output or 0,
    }
    return {metric: tokens for metric, tokens in counts.items() if tokens > 0}


def token_events(
    customer_ref: Optional[str],
    response_or_usage: object,
    model: Optional[str] = None,
    *,
    resource_id: Optional[str] = None,
    meta: Optional[Mapping[str, Any]] = None,
    idempotency_key: Optional[str] = None,
) -> list[dict[str, Any]]:
    """The events of a response, as `track_batch` takes them. Raises ValueError as `tokens_of`.

    `model`: the response's own where it is not given. `idempotency_key`: of the response; each metric adds its name.
    """
    named = _get(response_or_usage, "model") if model is None else model
    about = {**(meta or {}), **({"model": named} if isinstance(named, str) else {})}
    return [
        {
            "metric": metric,
            "customer_ref": customer_ref,
            "quantity": tokens,
            "resource_id": resource_id,
            "meta": about or None,
            "idempotency_key": idempotency_key and f"{idempotency_key}:{metric}",
        }
        for metric, tokens in tokens_of(response_or_usage).items()
    ]


def track_tokens(
    client: StripeMeterClient,
    customer_ref: Optional[str],
    response_or_usage: object,
    model: Optional[str] = None,
    **more: Any,
) -> BatchResult:
    """Track a response's tokens; `more` as in `token_events`. Raises ValueError as `tokens_of`."""
    return client.track_batch(token_events(customer_ref, response_or_usage, model, **more))


async def track_tokens_async(
    client: AsyncStripeMeterClient,
    customer_ref: Optional[str],
    response_or_usage: object,
    model: Optional[str] = None,
    **more: Any,
) -> BatchResult:
    """The same with an async client."""
    return await client.track_batch(token_events(customer_ref, response_or_usage, model, **more))


def _get(value: object, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None)


def _count(value: object, name: str) -> Optional[int]:
    found = _get(value, name)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
