"""Field types of amounts and price documents: how exact decimals are written and documented.

It must not know any resource.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from gateway.price_schemas import document

Money = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Exact, with the currency's digits; with `numbers=string` a string.",
        extra_json_schema={"type": ["number", "string"], "examples": [220.00]},
    ),
]
MoneyOrNull = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Exact, with the currency's digits; null: not known, and the reason is given.",
        extra_json_schema={"type": ["number", "string", "null"], "examples": [220.00]},
    ),
]
PriceDocument = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="A price configuration.",
        extra_json_schema=document("PriceConfig"),
    ),
]
NULL: Final = msgspec.Raw(b"null")
