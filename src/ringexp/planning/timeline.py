"""Play a plan through, with its costs and links: when each member receives, waits and computes.

The rules are those of the transports (`ring/nccl.py`, `ring/ipc.py`, `ring/gloo.py`). Linear layers come
first, then the own shard's blocks. Shards are worked on in order of arrival. A hop of a forwarding ring is a
send to the next member and a receive from the one before: it begins when both ends are at it, and is over on
a member when it has done both. With direct links it comes from the owner itself, once that is done with its
linear layers, and is of what the member computes with. That a shard may come heads after heads, and how much
transfers and compute slow each other down, is not in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import add

from ringexp.planning.cost import RankCost
from ringexp.planning.links import Links
from ringexp.planning.plan import Plan
from ringexp.planning.work import block_rows, linear_ms, needed_rows

Row = list[float]


@dataclass(frozen=True)
class TimelineHop:
    """Milliseconds from the start, of one hop on one rank; hop 0, the own shard, has no transfer."""

    source: int
    transfer_begin: float
    arrival: float
    compute_begin: float
    compute_end: float
    wait_ms: float


@dataclass(frozen=True)
class Timeline:
    """The times of one ring. All lists have one row per hop, and in a row one entry per member."""

    members: Sequence[int]
    transfers: Sequence[Row]  # when they begin; of hop 0 when linear layers end
    arrivals: Sequence[Row]
    compute_begins: Sequence[Row]
    compute_ends: Sequence[Row]

    @property
    def latency_ms(self) -> float:
        """The time at which the last rank is done."""
        return max(self.compute_ends[-1])

    def hops(self, place: int) -> list[TimelineHop]:
        """Return the times of the member at `place`, hop by hop."""
        free = [self.transfers[0][place], *(row[place] for row in self.compute_ends)]
        return [
            TimelineHop(
                source=self.members[place - hop],
                transfer_begin=self.transfers[hop][place],
                arrival=self.arrivals[hop][place],
                compute_begin=self.compute_begins[hop][place],
                compute_end=self.compute_ends[hop][place],
                wait_ms=self.compute_begins[hop][place] - free[hop],
            )
            for hop in range(len(self.members))
        ]

    def busy_ms(self) -> Row:
        """Return the time that each member computes."""
        spent = [0.0] * len(self.members)
        for begins, ends in zip(self.compute_begins, self.compute_ends, strict=True):
            spent = [s + end - begin for s, begin, end in zip(spent, begins, ends, strict=True)]
        return list(map(add, self.transfers[0], spent))


def simulate(
    plan: Plan, costs: Sequence[RankCost], links: Links, prefetch_hops: int | None = None
) -> Timeline:
    """Play a plan through. The chunks of a chunked plan are played one by one, not here.

    Args:
        plan: who holds what.
        costs: one per rank.
        links: the links between the ranks.
        prefetch_hops: hops that are posted ahead of compute, None for all. Each time a shard is received
            (with direct links: by its owner), one more is posted. 0 is a lock-step that no transport here
            has: a hop begins only after the blocks before it, on both of its ends.
    """
    return Timeline(plan.members, *map(list, zip(*_play(plan, costs, links, prefetch_hops), strict=True)))


def latency_ms(
    plan: Plan, costs: Sequence[RankCost], links: Links, prefetch_hops: int | None = None
) -> float:
    """Return the end of the timeline in ms, without keeping the rest of it."""
    (last,) = deque(_play(plan, costs, links, prefetch_hops), maxlen=1)
    return max(last[-1])


def carried_ms(plan: Plan, links: Links) -> float:
    """Return the least time in ms that hops alone take.

    Over each link all its transfers follow each other. Where shards are forwarded, each shard also goes over
    one link after the other, so the largest shard sets the pace of all.
    """
    members, kv_tokens = plan.members, plan.kv_tokens
    shard_sizes, hops = [kv_tokens[rank] for rank in members], links.into(members)
    if links.direct:
        over_links = [0.0] * len(members)
        for row in islice(needed_rows(plan, members), 1, None):
            took = (hop.time_ms(count) for hop, count in zip(hops, row, strict=True))
            over_links = list(map(add, over_links, took))
        return max(over_links)
    over_links = [
        hop.latency_ms * (len(members) - 1) + hop.unit_ms * (plan.seq_len - count)
        for hop, count in zip(hops, shard_sizes, strict=True)
    ]
    round_latency_ms, round_unit_ms = sum(hop.latency_ms for hop in hops), sum(hop.unit_ms for hop in hops)
    of_shards = [
        round_latency_ms - home.latency_ms + (round_unit_ms - home.unit_ms) * count
        for home, count in zip(hops, shard_sizes, strict=True)
    ]
    return max(*over_links, *of_shards)


def _play(
    plan: Plan, costs: Sequence[RankCost], links: Links, prefetch_hops: int | None
) -> Iterator[tuple[Row, Row, Row, Row]]:
    """Yield per hop the times at which transfers begin and shards arrive, and their blocks begin and end."""
    assert not plan.chunks
    members, kv_tokens = plan.members, plan.kv_tokens
    rows = block_rows(plan, costs, members)
    linear = linear_ms(plan, costs, members)
    shard_sizes, hops = [kv_tokens[rank] for rank in members], links.into(members)
    latencies_ms, unit_costs_ms = [hop.latency_ms for hop in hops], [hop.unit_ms for hop in hops]
    arrivals, ends = linear, list(map(add, linear, next(rows)))
    begun = deque([linear], maxlen=prefetch_hops or 1)  # blocks, of so many hops before
    needed = islice(needed_rows(plan, members), 1, None) if links.direct else None
    yield linear, linear, linear, ends
    for number, row in enumerate(rows, start=1):
        after = None if prefetch_hops is None else begun[0] if prefetch_hops else ends
        ready = list(map(max, arrivals, after)) if after else arrivals
        if links.direct:  # as far as the owner is; the member itself only has to be done with receiving
            own = ready if prefetch_hops == 0 else arrivals
            transfers = list(map(max, own, _turned(after or linear, number)))
        else:
            transfers = list(map(max, ready, _turned(ready, 1)))
        sizes = next(needed) if needed else _turned(shard_sizes, number)
        received = [
            t + (a + b * n if n else 0.0)
            for t, a, b, n in zip(transfers, latencies_ms, unit_costs_ms, sizes, strict=True)
        ]
        arrivals = received if links.direct else list(map(max, received, _turned(received, -1)))
        begun.append(list(map(max, ends, arrivals)))
        ends = list(map(add, begun[-1], row))
        yield transfers, arrivals, begun[-1], ends


def _turned(row: list, hops: int) -> list:
    """Return for each member the entry of the member this many places before it."""
    return row[-hops:] + row[:-hops]
