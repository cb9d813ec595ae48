"""Reads facts out of JSON that nobody vouches for: each is of the right kind and size, absent, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

from probe.errors import ModelError

CONFIG_CURE = "Give the config.json that was published with the model's weights."


class Fields:
    """A JSON object and where it stands; every reader takes the spellings of one fact, the first one present counts.

    A key that is absent or null reads as None. Raises ModelError, naming the key, the value and the place.
    """

    def __init__(self, facts: Mapping[str, object], where: str) -> None:
        self.facts = facts
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.facts.get(key) is not None

    def get(self, *keys: str) -> tuple[str, object] | None:
        for key in keys:
            value = self.facts.get(key)
            if value is not None:
                return key, value
        return None

    def wrong(self, key: str, value: object, wanted: str) -> ModelError:
        return ModelError(f"{self.where}: {key} is {shown(value)}, not {wanted}", cure=CONFIG_CURE)

    def count(self, *keys: str, limit: int, least: int = 1) -> int | None:
        """A whole number from `least` to `limit`; 8.0 reads as 8."""
        found = self.get(*keys)
        if found is None:
            return None
        key, value = found
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, value, "a whole number")
        if not least <= value <= limit:
            raise self.wrong(key, value, f"between {least} and {limit:,}")
        return value

    def needed(self, *keys: str, limit: int) -> int:
        value = self.count(*keys, limit=limit)
        if value is None:
            raise ModelError(f"{self.where} has no {keys[0]}", cure=CONFIG_CURE)
        return value

    def number(self, *keys: str) -> float | None:
        found = self.get(*keys)
        if found is None:
            return None
        key, value = found
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
            raise self.wrong(key, value, "a number")
        return float(value)

    def flag(self, *keys: str) -> bool | None:
        found = self.get(*keys)
        if found is None:
            return None
        key, value = found
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, *keys: str) -> str | None:
        found = self.get(*keys)
        if found is None:
            return None
        key, value = found
        if not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value[:200]

    def texts(self, *keys: str) -> tuple[str, ...]:
        found = self.get(*keys)
        if found is None:
            return ()
        key, value = found
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, value, "a list of texts")
        return tuple(value)

    def counts(self, *keys: str, limit: int) -> tuple[int, ...] | None:
        """A list of whole numbers from 0 to `limit`."""
        found = self.get(*keys)
        if found is None:
            return None
        key, value = found
        if not isinstance(value, (list, tuple)) or len(value) > 65536:
            raise self.wrong(key, value, "a list of whole numbers")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= limit:
                raise self.wrong(key, value, f"a list of whole numbers up to {limit:,}")
        return tuple(value)

    def fields(self, *keys: str) -> Fields | None:
        """A nested object."""
        found = self.get(*keys)
        if found is None:
            return None
        key, value = found
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return Fields(value, f"{self.where}: {key}")


def shown(value: object) -> str:
    """A hostile value, short enough for an error line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**15:
        return "a number beyond all measure"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    return repr(value[:40] if isinstance(value, str) else value)
