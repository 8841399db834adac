"""Shorten names to the limits of folders, wandb and tables.

shortened("a" * 300, 64)       ->  the first 55 characters, "-", and 8 digits of a hash of the whole
"""

from __future__ import annotations

import hashlib

MAX_FOLDER_BYTES = 160
"""The limit of a label in a folder's name, in bytes. File systems allow 255, also for the time before it."""

MAX_WANDB_TAG, MAX_WANDB_NAME = 64, 128
"""The limits of wandb, in characters. With a longer tag or name it keeps no record."""


def digest(text: str) -> str:
    """Return eight hexadecimal digits of a hash of `text`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def shortened(text: str, limit: int) -> str:
    """Return `text`, or its beginning and a digest of the whole, in at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 9]}-{digest(text)}"


def folder_part(label: str) -> str:
    """Return `label`, shortened if it is too long for a folder's name."""
    limit = MAX_FOLDER_BYTES
    while len(short := shortened(label, limit).encode("utf-8", "surrogateescape")) > MAX_FOLDER_BYTES:
        limit = limit * MAX_FOLDER_BYTES // len(short)
    return shortened(label, limit)
