"""The one refusal of the pricing library: it names the fields that are wrong, in the names of the HTTP contract."""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import Refused

_PROBLEMS_MAX = 50
"""More problems than a person reads at once; the first ones usually cause the others."""

Problem = tuple[str, str]
"""(field, message): `usageItems[0].priceConfig.tiers[1].upTo`, and what to write instead."""


class PricingError(Refused):
    """A price, an input or a scenario is wrong. `errors` lists (field, message), `str()` has them all in one line."""

    def __init__(self, errors: Iterable[Problem]) -> None:
        problems = tuple(errors)[:_PROBLEMS_MAX]
        assert problems, "a refusal names at least one field"
        super().__init__("; ".join(f"{field}: {message}" for field, message in problems), problems)

    @property
    def field(self) -> str:
        """The first field that is wrong."""
        return self.errors[0][0]

    def under(self, path: str) -> PricingError:
        """The same refusal seen from the document that holds the wrong part at `path`."""
        return PricingError((join(path, field), message) for field, message in self.errors)


def join(path: str, field: str) -> str:
    """`path` and a field below it: a dot between names, none before an index."""
    if not path or not field:
        return path or field
    return f"{path}{field}" if field.startswith("[") else f"{path}.{field}"
