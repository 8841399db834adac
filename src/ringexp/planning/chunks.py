"""Chunked prefill: the prompt is worked off in pieces, each of them spread over all ranks.

Only one chunk's tokens are in a layer's activations at a time; of those before it a rank holds keys and
values alone. Every chunk has a plan of its own, whose queries are the chunk's, its keys/values all up to it.
Within a chunk ranks have the shares they have of the prompt, so its work is balanced as the whole is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from ringexp.errors import UserError
from ringexp.planning.layouts import shards_for
from ringexp.planning.spans import Shard, Span


def chunk_counts(tokens: Sequence[int], chunks: int, tile: int) -> list[list[int]]:
    """Return the tokens [chunk][rank], as even over the chunks as whole tiles allow.

    Raises UserError if a rank has fewer tokens than there are chunks; in every chunk all take part.
    """
    least = min(count for count in tokens if count)
    if least < chunks:
        raise UserError(
            f"{chunks} chunks need as many tokens on every rank, but one has {least}; use a larger "
            "model.chunk_tokens"
        )
    unit = tile if least // chunks >= tile else 1
    ends = [[count * (c + 1) // chunks // unit * unit for count in tokens] for c in range(chunks - 1)]
    ends.append(list(tokens))
    return [
        [end - start for start, end in zip(before, after, strict=True)]
        for before, after in zip([[0] * len(tokens), *ends], ends, strict=False)
    ]


def chunk_shards(layout: str, counts: Sequence[Sequence[int]]) -> Iterator[tuple[Shard, ...]]:
    """Yield the shards of each chunk under `layout`, in global positions."""
    begins = accumulate((sum(tokens) for tokens in counts), initial=0)
    for tokens, begin in zip(counts, begins, strict=False):
        yield tuple(
            Shard(tuple(Span(span.start + begin, span.stop + begin) for span in shard.spans))
            for shard in shards_for(layout, tokens)
        )


def joined(*shards: Shard) -> Shard:
    """Return the shard of all spans of shards that follow each other, in as few spans as possible."""
    spans: list[Span] = []
    for span in (span for shard in shards for span in shard.spans):
        if spans and spans[-1].stop == span.start:
            spans[-1] = Span(spans[-1].start, span.stop)
        else:
            spans.append(span)
    return Shard(tuple(spans))
