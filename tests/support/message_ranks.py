"""Functions that ranks of a test pool run to send and receive messages, or to forge them."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ringexp.errors import RunFailed
from ringexp.ring.messages import CODE_BYTES, Messages
from ringexp.ring.timing import HopTiming, IterationTiming

KINDS = (IterationTiming, HopTiming)


@dataclass(frozen=True)
class Unknown:
    """A dataclass that no rank announces."""

    value: int


def gathered(rank: int, values: list[Any], key: bytes = b"") -> tuple[list[Any], Any]:
    """Return what this rank receives: every rank's own value, and rank 1's value."""
    messages = Messages(None, KINDS, key)
    return messages.all_gather(values[rank]), messages.broadcast(values[1] if rank == 1 else None, source=1)


def forged(rank: int, forgery: str) -> str:
    """Return rank 0's value or error for a message of rank 1 that may lack the key or use it wrongly."""
    messages = Messages(None, KINDS, b"key of the run")
    if rank == 0:
        try:
            return repr(messages.all_gather("true")[1])
        except RunFailed as error:
            return str(error)
    _send(_forgeries(messages)[forgery])
    return ""


def _forgeries(messages: Messages) -> dict[str, bytes]:
    """Return the bytes of messages that are not what rank 1 would send as its first."""

    def coded(text: bytes, about: str, key: bytes = b"key of the run") -> bytes:
        return hmac.digest(key, about.encode() + text, "sha256") + text

    return {
        "right": coded(b'"false"', " 1 1\n"),
        "no code": b'"false"',
        "zeros": bytes(CODE_BYTES) + b'"false"',
        "another key": coded(b'"false"', " 1 1\n", b"another"),
        "another sender": coded(b'"false"', " 1 0\n"),
        "repeated": coded(b'"false"', " 0 1\n"),
        "another channel": coded(b'"false"', "ipc 1 1\n"),
        "changed": coded(b'"false"', " 1 1\n")[:-2] + b'!"',
        "empty": b"",
    }


def _send(raw: bytes) -> None:
    """Take part in an all_gather as `Messages` does, with these bytes."""
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
    dist.all_gather(sizes, torch.tensor([len(raw)]))
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
    padded[: len(raw)] = torch.tensor(list(raw), dtype=torch.uint8)
    dist.all_gather([torch.empty_like(padded) for _ in range(2)], padded)


def endless(rank: int) -> str:
    """Return rank 0's error for a message that rank 1 announces to be longer than memory."""
    if rank == 0:
        try:
            Messages(None).all_gather(1)
        except RunFailed as error:
            return str(error)
    dist.all_gather([torch.zeros(1, dtype=torch.int64) for _ in range(2)], torch.tensor([1 << 60]))
    return ""
