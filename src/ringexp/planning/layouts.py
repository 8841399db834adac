"""Layouts: token counts -> which global positions each rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ringexp.choices import LAYOUTS
from ringexp.errors import UserError
from ringexp.planning.spans import Shard, Span


def contiguous(tokens: Sequence[int]) -> list[Shard]:
    """Give each rank one span, in rank order. This is the layout of the source study."""
    stops = list(accumulate(tokens))
    return [
        Shard((Span(stop - count, stop),) if count else ()) for count, stop in zip(tokens, stops, strict=True)
    ]


def zigzag(tokens: Sequence[int]) -> list[Shard]:
    """Give each rank a head piece and a mirrored tail piece of half its tokens each.

    Heads follow each other from the front in rank order, tails mirror them from the back, so the causal
    work of rank i is tokens[i] * seq_len / 2 whatever the others hold. An odd count puts its extra token in
    the head; a rank with one token has no tail.
    """
    seq_len = sum(tokens)
    heads = [count - count // 2 for count in tokens]
    head_stops = list(accumulate(heads))
    tail_stops = [seq_len - before for before in accumulate((count // 2 for count in tokens), initial=0)]
    shards = []
    for rank, count in enumerate(tokens):
        if not count:
            shards.append(Shard(()))
            continue
        spans = [Span(head_stops[rank] - heads[rank], head_stops[rank])]
        if count > 1:
            tail = Span(tail_stops[rank] - count // 2, tail_stops[rank])
            if spans[0].stop == tail.start:  # the innermost rank's pieces touch
                spans = [Span(spans[0].start, tail.stop)]
            else:
                spans.append(tail)
        shards.append(Shard(tuple(spans)))
    return shards


def shards_for(layout: str, tokens: Sequence[int]) -> list[Shard]:
    """Return the shards of all ranks under `layout`. A rank with 0 tokens is not in the ring.

    Raises:
        UserError: if the layout is unknown, or the counts are no split.
    """
    spec = LAYOUTS[layout]
    if min(tokens, default=-1) < 0 or not any(tokens):
        raise UserError(f"token counts must be at least 0, and one above, got {list(tokens)}")
    return spec.load()(tokens)
