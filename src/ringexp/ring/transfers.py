"""The times of hops, collected while a ring runs and read when its transfers have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from ringexp.ring.timing import Origin

Transfer: TypeAlias = Callable[[Origin], tuple[float | None, float]]
"""Returns when a hop began, counted from a clock's `origin`, and how long it took, both in ms.

To be called after the hop has arrived. A begin of None means that of the attention that the hop is for.
"""


class Transfers:
    """The hops of one transport, in order, until somebody takes them."""

    def __init__(self) -> None:
        self._untaken: list[Transfer] = []

    def add(self, transfers: Iterable[Transfer]) -> None:
        self._untaken += transfers

    def take(self) -> list[Transfer]:
        """Return the hops since the last call. Those of a graph's capture describe its latest replay."""
        unread, self._untaken = self._untaken, []
        return unread
