"""Small values that ranks exchange, as JSON over a process group, never as code.

    messages = Messages(group, kinds=(IterationTiming, HopTiming), key=secret)
    timings = messages.all_gather(timing)                # every rank's, on every rank
    table = messages.broadcast(table, source=0)          # that of rank 0

A value is None, a bool, a number (NaN and infinity too), text, bytes, a list, tuple or dict of values, or an
instance of one of the dataclasses `kinds`. It arrives as it was, floats bit by bit. With a key each message
carries a code (HMAC-SHA256) that only those who have the key can make, over its text, its sender and its
number, so none can be forged, repeated or exchanged for another.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ringexp.errors import RunFailed

T = TypeVar("T")

CODE_BYTES = 32
MOST_BYTES = 1 << 30
"""The largest accepted message, in bytes. Usual messages have kilobytes, large tables megabytes."""

_SCALARS = (str, int, float, bool, type(None))


class Messages:
    """One rank's end of the messages of a process group. All its ranks make one and call it alike.

    Args:
        group: Has gloo for the CPU; None is the default group.
        kinds: Dataclasses that values may be of; the same on all ranks.
        key: The run's secret; empty where ranks have none, and then messages carry no code.
        channel: Tells apart the messages of several instances with one key.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        kinds: Sequence[type] = (),
        key: bytes = b"",
        channel: str = "",
    ) -> None:
        self._group, self._codec, self._key, self._channel = group, Codec(kinds), key, channel
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._count = 0

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value. Raises RunFailed for a message that no rank of this run sent."""
        self._count += 1
        message = self._signed(value)
        sizes = torch.empty(self._world, dtype=torch.int64, device="cpu")
        dist.all_gather(list(sizes.split(1)), torch.tensor([len(message)], device="cpu"), self._group)
        longest = self._checked(int(sizes.max()), int(sizes.argmax()))
        padded = torch.zeros(longest, dtype=torch.uint8, device="cpu")
        padded[: len(message)] = message
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded, self._group)
        return [
            value if rank == self._rank else cast("T", self._opened(bytes(raw[:size].numpy()), rank))
            for rank, (raw, size) in enumerate(zip(everyone, sizes.tolist(), strict=True))
        ]

    def broadcast(self, value: T | None, source: int = 0) -> T:
        """Return the value of the group's rank `source`; others pass None. Raises as `all_gather` does."""
        self._count += 1
        if self._rank == source:
            raw = self._signed(value)
            dist.broadcast(torch.tensor([len(raw)], device="cpu"), group=self._group, group_src=source)
            dist.broadcast(raw, group=self._group, group_src=source)
            return value  # type: ignore[return-value]
        size = torch.zeros(1, dtype=torch.int64, device="cpu")
        dist.broadcast(size, group=self._group, group_src=source)
        raw = torch.empty(self._checked(int(size), source), dtype=torch.uint8, device="cpu")
        dist.broadcast(raw, group=self._group, group_src=source)
        return cast("T", self._opened(bytes(raw.numpy()), source))

    def _signed(self, value: object) -> torch.Tensor:
        text = self._codec.encode(value)
        return torch.frombuffer(bytearray(self._code(text, self._rank) + text), dtype=torch.uint8)

    def _code(self, text: bytes, sender: int) -> bytes:
        if not self._key:
            return b""
        about = f"{self._channel} {self._count} {sender}\n".encode()
        return hmac.digest(self._key, about + text, "sha256")

    def _opened(self, raw: bytes, sender: int) -> object:
        length = CODE_BYTES if self._key else 0
        code, text = raw[:length], raw[length:]
        if not hmac.compare_digest(code, self._code(text, sender)):
            raise RunFailed(
                f"rank {sender} sent a message without this run's secret: another process may have taken its "
                "place; start the run again"
            )
        try:
            return self._codec.decode(text)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RunFailed(f"rank {sender} sent a message that cannot be read: {error}") from error

    def _checked(self, size: int, sender: int) -> int:
        """Return a message's size, bytes, unless no rank would send one so long."""
        if not 0 <= size <= MOST_BYTES:
            raise RunFailed(f"rank {sender} announces a message of {size:,} bytes; no rank sends that")
        return size


class Codec:
    """Values as JSON and back. What JSON has no type for is an object with one member, its type's name.

    `{"HopTiming": [...]}` has the fields of one instance in order, `{"HopTiming*": [[...], ...]}` those of a
    list of them, which is shorter and quicker.
    """

    def __init__(self, kinds: Sequence[type] = ()) -> None:
        self._kinds = {kind.__name__: _Kind(kind) for kind in kinds}
        self._of_type = {kind: self._kinds[kind.__name__] for kind in kinds}

    def encode(self, value: object) -> bytes:
        """Return the JSON text of a value. Raises TypeError for a type that is not in `kinds`."""
        return json.dumps(self._plain(value), separators=(",", ":")).encode()

    def decode(self, text: bytes) -> object:
        """Return the value of a text. Raises ValueError or TypeError for what `encode` does not write."""
        return json.loads(text, object_hook=self._typed)

    def _plain(self, value: Any) -> object:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if entry := self._of_type.get(kind):
            return {entry.name: self._row(entry, value)}
        if kind is list:
            first = self._of_type.get(type(value[0])) if value else None
            if first and all(type(item) is first.kind for item in value):
                return {f"{first.name}*": [self._row(first, item) for item in value]}
            return self._items(value)
        if isinstance(value, tuple):
            return {"tuple": self._items(value)}
        if kind is dict:
            return {"dict": [self._items(item) for item in value.items()]}
        if kind is bytes:
            return {"bytes": value.hex()}
        if isinstance(value, float | int | str):  # such as a number of numpy
            return value
        raise TypeError(f"{kind.__name__} is no type that ranks exchange")

    def _items(self, values: Iterable[object]) -> list[object]:
        return [item if type(item) in _SCALARS else self._plain(item) for item in values]

    def _row(self, kind: _Kind, value: object) -> object:
        return kind.values_of(value) if kind.flat else self._items(kind.values_of(value))

    def _typed(self, members: dict[str, Any]) -> object:
        ((name, content),) = members.items()
        if kind := self._kinds.get(name):
            return kind.make(content)
        if name.endswith("*") and (kind := self._kinds.get(name[:-1])):
            return [kind.make(row) for row in content]
        if name == "tuple":
            return tuple(content)
        if name == "dict":
            return dict(content)
        if name == "bytes":
            return bytes.fromhex(content)
        raise ValueError(f"{name} is no type that ranks exchange")


class _Kind:
    """A dataclass that is exchanged. flat: all its fields are numbers and text, by their annotations."""

    def __init__(self, kind: type) -> None:
        assert is_dataclass(kind), kind
        names = [field.name for field in fields(kind)]
        getter = attrgetter(*names)
        self.kind, self.name, self._count = kind, kind.__name__, len(names)
        self.flat = all(str(field.type) in ("str", "int", "float", "bool") for field in fields(kind))
        self.values_of: Callable[[object], tuple[object, ...]] = (
            getter if len(names) > 1 else lambda value: (getter(value),)
        )

    def make(self, row: Sequence[object]) -> object:
        """Return an instance. Raises ValueError or TypeError for values that are not its fields."""
        if len(row) != self._count:
            raise ValueError(f"{self.name} has {self._count} fields, not {len(row)}")
        return self.kind(*row)
