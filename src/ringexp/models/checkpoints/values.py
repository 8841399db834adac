"""Values of a config.json, checked as they are read. Free of torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ringexp.errors import UserError

LONGEST = 80
"""Characters of a value that an error message shows."""


@dataclass(frozen=True)
class ConfigValues:
    """The settings of a table in config.json.

    Attributes:
        folder: the checkpoint, for messages.
        raw: the table.
        defaults: the value of each key that may be missing; every other key is required.
        within: the table's name for messages, such as "rope_scaling.".
    """

    folder: object
    raw: Mapping[str, object]
    defaults: Mapping[str, object]
    within: str = ""

    def get(self, key: str) -> object:
        """Return the value; if it is missing, its default, or None without a default."""
        return self.raw.get(key, self.defaults.get(key))

    def count(self, key: str, if_null: int | None = None, least: int = 1) -> int:
        """Return a whole number. Raises UserError for another value.

        Args:
            key: name of the setting.
            if_null: what null means; None where null is not allowed.
            least: the smallest number that is allowed.
        """
        value = self._given(key)
        if value is None and if_null is not None:
            return if_null
        if type(value) is not int or value < least:
            raise self.refusal(key, f"it has to be a whole number of at least {least}")
        return value

    def number(self, key: str) -> float:
        """Return a number above 0. Raises UserError for another value."""
        value = self._given(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refusal(key, "it has to be a number above 0")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false. Raises UserError for another value."""
        value = self._given(key)
        if type(value) is not bool:
            raise self.refusal(key, "it has to be true or false")
        return value

    def refusal(self, key: str, reason: str) -> UserError:
        """Return the error that names the key, its value and the reason, in one line."""
        if key in self.raw:
            shown = json.dumps(self.raw[key])
            shown = shown if len(shown) <= LONGEST else shown[:LONGEST] + "..."
            what = f"{self.within}{key}={shown}"
        else:
            what = (
                f"{self.within}{key} missing"
                if key not in self.defaults
                else f"{self.within}{key} at its default"
            )
        return UserError(f"checkpoint {self.folder}: config.json has {what}, but {reason}")

    def _given(self, key: str) -> object:
        if key not in self.raw and key not in self.defaults:
            raise UserError(
                f"checkpoint {self.folder}: config.json has no {self.within}{key}, which is needed"
            )
        return self.get(key)
