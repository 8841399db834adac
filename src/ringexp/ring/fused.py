"""Which blocks a kernel computes in one launch: those of several shards at once, where it and they allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ringexp.kernels import FusedLimits
from ringexp.planning import Block, BlockShape, Plan

Part = tuple[int, Block]
"""A block, and whose keys/values it is about."""


@dataclass(frozen=True)
class Launch:
    """Blocks of the same last query row; the first one is about all rows that any of them is about."""

    parts: tuple[Part, ...]

    @property
    def first(self) -> Block:
        return self.parts[0][1]

    @property
    def rows(self) -> tuple[int, int]:
        return self.first.q_start, self.first.q_stop

    def takes(self, block: Block, fused_limits: FusedLimits) -> bool:
        """Whether the launch can have this one, too."""
        from_row = block.q_start - self.first.q_start
        return (
            len(self.parts) < fused_limits.spans
            and block.shape is BlockShape.FULL
            and block.q_stop == self.first.q_stop
            and from_row >= 0
            and from_row % fused_limits.tile == block.kv_len % fused_limits.tile == 0
        )


def launches(
    plan: Plan, rank: int, sources: Iterable[int], start: int, fused_limits: FusedLimits | None
) -> list[Launch]:
    """How `rank` computes with the shards of `sources`, which are there together; start: as `Plan.blocks`."""
    parts = [(source, block) for source in sources for block in plan.blocks(rank, source, start)]
    if fused_limits is None:
        return [Launch((part,)) for part in parts]
    return _joined(
        sorted(parts, key=lambda part: (part[1].shape is BlockShape.FULL, part[1].q_start)), fused_limits
    )


def _joined(parts: Sequence[Part], fused_limits: FusedLimits) -> list[Launch]:
    """Each part goes to the first launch that takes it; those that take others come first."""
    found: list[Launch] = []
    for part in parts:
        for place, launch in enumerate(found):
            if launch.takes(part[1], fused_limits):
                found[place] = Launch((*launch.parts, part))
                break
        else:
            found.append(Launch((part,)))
    return found
