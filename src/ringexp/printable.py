"""Make text from files and other programs safe to print, so that none of it controls the terminal."""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of text
    "\u2028\u2029"  # separate lines and paragraphs
    "\ud800-\udfff"  # halves of pairs, which no encoding can write
    "]"
)


def plain(text: object) -> str:
    """Return `text` on one line. Control characters and others that act on a terminal are replaced."""
    return plain_lines(re.sub(r"[\t\r\n]+", " ", str(text)))


def plain_lines(text: object) -> str:
    """Return `text` as `plain` does, but keep tabs and newlines."""
    return _UNSAFE.sub("\ufffd", str(text))


def shown(text: object) -> str:
    """Return `plain` text for rich, with markup escaped."""
    from rich.markup import escape

    return escape(plain(text))
