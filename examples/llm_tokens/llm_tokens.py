"""Tokens of a language model: input, cached and output tokens are metrics of their own, since they have prices of their own.

`track_tokens` reads the usage of a provider's response by its shape, object or dict. Here two responses stand in for a
provider; in your product pass what its library returned.
"""

from __future__ import annotations

import os
from typing import Any

from stripemeter import StripeMeterClient
from stripemeter.llm import track_tokens

RESPONSES: list[dict[str, Any]] = [
    {
        "id": "chat-1",
        "model": "large",
        "usage": {
            "prompt_tokens": 12_000,
            "completion_tokens": 800,
            "prompt_tokens_details": {"cached_tokens": 10_000},
        },
    },
    {
        "id": "message-1",
        "model": "small",
        "usage": {"input_tokens": 3_000, "output_tokens": 1_200, "cache_read_input_tokens": 0},
    },
]

with StripeMeterClient(
    os.environ.get("STRIPEMETER_URL", "http://127.0.0.1:3000"),
    "acme",
    api_key=os.environ.get("STRIPEMETER_API_KEY"),
) as meter:
    for response in RESPONSES:
        # The response's own id as the key: a job that is run again counts nothing twice.
        track_tokens(meter, "cus_anna", response, idempotency_key=str(response["id"]))
    print("delivered:", meter.flush())
