"""Names that fit where they go: in a folder's name, in wandb, in a table. Pure Python.

shortened("a" * 300, 64)       ->  the first 55 characters, "-", and 8 digits of a hash of the whole
"""

from __future__ import annotations

import hashlib

MAX_FOLDER_BYTES = 160
"""Bytes of a label in a folder's name. File systems take 255 bytes; a time or a number comes before it."""

MAX_WANDB_TAG, MAX_WANDB_NAME = 64, 128
"""The limits of wandb, in characters; with a longer one it keeps no record."""


def digest(text: str) -> str:
    """Return eight hexadecimal digits that tell `text` from others."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def shortened(text: str, limit: int) -> str:
    """Return `text`, or its beginning and a digest of the whole, in at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 9]}-{digest(text)}"


def folder_part(label: str) -> str:
    """Return `label`, shortened where it is too long to be part of a folder's name."""
    limit = MAX_FOLDER_BYTES
    while len(short := shortened(label, limit).encode("utf-8", "surrogateescape")) > MAX_FOLDER_BYTES:
        limit = limit * MAX_FOLDER_BYTES // len(short)
    return shortened(label, limit)
