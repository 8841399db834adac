"""Token counts as people write them: 4k is 4,096 tokens, 1M is 1,048,576. Pure Python."""

from __future__ import annotations

import re

from ringexp.errors import UserError

UNITS = {"k": 2**10, "m": 2**20}

_WITH_UNIT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([kKmM])(?![\w.])")


def token_count(text: str) -> int:
    """Return the number that `text` names, such as "4096", "4k" or "0.5M"; raise UserError for other text."""
    written = written_out(text.strip())
    if not re.fullmatch(r"[+-]?\d+(_\d+)*", written):
        raise UserError(f"{text!r} is no number of tokens: use one such as 4096, 4k or 1M")
    return int(written)


def written_out(text: str) -> str:
    """Return `text` with every count that has a unit as plain digits: "[4k,100]" becomes "[4096,100]"."""
    return _WITH_UNIT.sub(_digits, text)


def _digits(match: re.Match[str]) -> str:
    tokens = float(match[1]) * UNITS[match[2].lower()]
    if not tokens.is_integer():
        raise UserError(f"{match[0]} is {tokens:.6g} tokens: use a count that is whole, such as 4k or 1.5k")
    return str(int(tokens))
