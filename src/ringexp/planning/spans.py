"""Spans of global token positions, and the shard of them that one rank holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, order=True)
class Span:
    """Half-open range [start, stop) of global positions; never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a span needs 0 <= start < stop, got [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


@dataclass(frozen=True)
class Shard:
    """The spans one rank holds, in ascending order; its local tensors hold them end to end.

    A rank that is not in the ring holds none.
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        for left, right in zip(self.spans, self.spans[1:], strict=False):
            if left.stop > right.start:
                raise ValueError(f"the spans of a shard must be sorted and disjoint, got {self}")

    @property
    def num_tokens(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def last(self) -> int:
        """The largest position held; -1 for none."""
        return self.spans[-1].stop - 1 if self.spans else -1

    def placed(self) -> Iterator[tuple[int, Span]]:
        """Yield each span with the local index at which it starts."""
        offset = 0
        for span in self.spans:
            yield offset, span
            offset += len(span)

    def positions(self) -> list[int]:
        """Return the global positions in local order."""
        return [position for span in self.spans for position in range(span.start, span.stop)]

    def since(self, start: int) -> tuple[int, Shard]:
        """Return how many of the positions lie before `start`, and the shard of all others."""
        later = Shard(tuple(Span(max(s.start, start), s.stop) for s in self.spans if s.stop > start))
        return self.num_tokens - later.num_tokens, later

    def overlap(self, other: Shard) -> Iterator[tuple[int, int, int]]:
        """Yield the runs of positions that both hold: (local start here, local start there, length)."""
        for here, a in self.placed():
            for there, b in other.placed():
                start, stop = max(a.start, b.start), min(a.stop, b.stop)
                if start < stop:
                    yield here + start - a.start, there + start - b.start, stop - start

    def __str__(self) -> str:
        return " + ".join(str(span) for span in self.spans) or "none"


def runs(starts: Sequence[int]) -> list[tuple[slice, int]]:
    """Group neighbouring sequences of a batch that start at the same slot. Return (slice, slot) per group."""
    groups, first = [], 0
    for start, members in groupby(starts):
        count = len(list(members))
        groups.append((slice(first, first + count), start))
        first += count
    return groups
