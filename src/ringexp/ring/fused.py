"""Ring attention with a kernel that merges by itself and takes several blocks in one launch.

The second implementation of `loop.attend`. A launch joins blocks of one shard, and in the first round blocks
of several shards: the kernel then waits for those shards itself, and sends the rank's own to others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch

from ringexp.kernels import ArrivalFlags, FusedLimits, KeySpan, OnlineSoftmax, Sending
from ringexp.planning import Block, BlockShape, Plan
from ringexp.ring.context import RingContext
from ringexp.ring.loop import receive
from ringexp.ring.pending import PendingShard
from ringexp.ring.queries import empty_result, joined_output, padding_runs
from ringexp.ring.transport import RingPass

Part = tuple[int, Block]
"""A block, after the rank whose keys and values it is about."""


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: RingContext, softmax_scale: float
) -> torch.Tensor:
    """Compute `attention.ring_attention` with as few kernel launches as the kernel's limits allow."""
    padding = padding_runs(q, ring)
    limits = _limits_of_first_round(ring, len(padding))
    rounds = _rounds(ring, [start for _, start in padding], limits)
    ring_pass = RingPass(
        ring.plan.kv_tokens,
        ring.prefetch_hops,
        ring.plan.needed,
        heads_first_hops=limits.spans - 1 if limits else 0,
        kernel_sends=rounds[0].joined,
    )
    with closing(ring.transport.circulate(k, v, ring_pass)) as shards:
        groups = [_Group(q, sequences, number, rounds) for number, (sequences, _) in enumerate(padding)]
        for current in rounds:
            arrived = _receive_together(list(islice(shards, len(current.sources))), current.wanted, ring)
            for group in groups:
                for launch in current.launches[group.number]:
                    group.attend(launch, arrived, ring, softmax_scale)
        next(shards, None)
    return joined_output([group.result for group in groups], q.dtype)


@dataclass(frozen=True)
class Launch:
    """Blocks with one last query row. The first block covers all rows that the others cover."""

    parts: tuple[Part, ...]

    @property
    def first(self) -> Block:
        return self.parts[0][1]

    @property
    def rows(self) -> tuple[int, int]:
        return self.first.q_start, self.first.q_stop

    def can_take(self, block: Block, limits: FusedLimits) -> bool:
        """Tell whether the kernel can compute one more block in this launch."""
        from_row = block.q_start - self.first.q_start
        return (
            len(self.parts) < limits.spans
            and block.shape is BlockShape.FULL
            and block.q_stop == self.first.q_stop
            and from_row >= 0
            and from_row % limits.tile == block.kv_len % limits.tile == 0
        )


def launches(
    plan: Plan, rank: int, sources: Iterable[int], start: int, limits: FusedLimits | None
) -> list[Launch]:
    """Return the launches for `rank`'s queries and the shards of `sources`; start: as in `Plan.blocks`."""
    parts = [(source, block) for source in sources for block in plan.blocks(rank, source, start)]
    if limits is None:
        return [Launch((part,)) for part in parts]
    return _joined(
        sorted(parts, key=lambda part: (part[1].shape is BlockShape.FULL, part[1].q_start)), limits
    )


def _joined(parts: Sequence[Part], limits: FusedLimits) -> list[Launch]:
    """Put each part into the first launch that can take it, or into a new one."""
    joined: list[Launch] = []
    for part in parts:
        for place, launch in enumerate(joined):
            if launch.can_take(part[1], limits):
                joined[place] = Launch((*launch.parts, part))
                break
        else:
            joined.append(Launch((part,)))
    return joined


@dataclass(frozen=True)
class _Round:
    """Shards that the rank computes with together.

    Attributes:
        sources: Whose shards these are.
        launches: For each group of sequences the launches with these shards.
        joined: One launch takes all shards. It waits for them, and sends the rank's own.
    """

    sources: Sequence[int]
    launches: Sequence[Sequence[Launch]]
    joined: bool = False

    @property
    def wanted(self) -> set[int]:
        """The sources whose shards any block is about."""
        return {source for group in self.launches for launch in group for source, _ in launch.parts}


def _limits_of_first_round(ring: RingContext, num_groups: int) -> FusedLimits | None:
    """Return what a launch may take of shards that are still on their way; None: it may not, on any rank."""
    may_join = ring.transport.announces and ring.prefetch_hops is None and num_groups == 1
    return ring.kernel.fused_limits if may_join else None


def _rounds(ring: RingContext, starts: Sequence[int], limits: FusedLimits | None) -> list[_Round]:
    """Return a round per source, after a first one of several sources if one launch takes those."""
    sources = ring.transport.arrival_order(ring.plan.kv_tokens)

    def together(sources: Sequence[int], joined: bool = False) -> _Round:
        groups = [
            launches(ring.plan, ring.rank, sources, start, ring.kernel.fused_limits) for start in starts
        ]
        return _Round(sources, groups, joined)

    if limits is not None:
        first = together(sources[: limits.spans], joined=True)
        (first_launches,) = first.launches
        if len(first_launches) == 1 and first_launches[0].parts[0][0] == ring.rank:
            return [first, *(together([source]) for source in sources[limits.spans :])]
    return [together([source]) for source in sources]


@dataclass(frozen=True)
class ArrivedShard:
    """A shard that a launch may be given.

    Attributes:
        keys: [B, Hkv, L, D].
        values: Like keys.
        flags: What the kernel has to wait for before it reads them; None: they are there.
        sending: What the kernel has to send of them.
    """

    keys: torch.Tensor
    values: torch.Tensor
    flags: ArrivalFlags | None = None
    sending: Sending | None = None


def _receive_together(
    shards: Sequence[PendingShard], wanted: Collection[int], ring: RingContext
) -> dict[int, ArrivedShard]:
    """Return a round's shards by source. Where there are several, kernels wait for those that are announced.

    wanted: the sources that any block is about.
    """
    if len(shards) == 1 and shards[0].source != ring.rank:
        return {shards[0].source: ArrivedShard(*receive(shards[0], ring))}
    arrived: dict[int, ArrivedShard] = {}
    waited = None
    for shard in shards:
        if shard.announce and shard.source in wanted:
            if waited is None:
                waited = torch.empty(1, dtype=torch.int32, device=arrived[ring.rank].keys.device)
            (keys, values), flags = shard.announce(waited)
        else:
            (keys, values), flags = shard.receive(), None
        arrived[shard.source] = ArrivedShard(
            keys.transpose(1, 2), values.transpose(1, 2), flags, shard.sending
        )
    ring.clock.computes_with([shard.source for shard in shards], waited)
    return arrived


class _Group:
    """The queries of sequences with equal padding, and their result so far.

    number: the group's place among all groups.
    """

    def __init__(self, q: torch.Tensor, sequences: slice, number: int, rounds: Sequence[_Round]) -> None:
        self._q, self._sequences, self.number = q[sequences], sequences, number
        rows = [launch.rows for current in rounds for launch in current.launches[number]]
        self.result: OnlineSoftmax = empty_result(self._q, rows)

    def attend(
        self, launch: Launch, arrived: Mapping[int, ArrivedShard], ring: RingContext, softmax_scale: float
    ) -> None:
        """Compute the blocks of a launch and merge them into the result."""
        rows, spans = slice(*launch.rows), []
        for source, block in launch.parts:
            shard, columns = arrived[source], slice(block.kv_start, block.kv_stop)
            keys = shard.keys[self._sequences, :, columns]
            values = shard.values[self._sequences, :, columns]
            sending = None if spans else shard.sending
            spans.append(KeySpan(keys, values, block.q_start - rows.start, shard.flags, sending))
        queries = self._q[:, rows].transpose(1, 2)
        self.result.attend(ring.kernel, queries, spans, launch.first.shape, softmax_scale, rows)
