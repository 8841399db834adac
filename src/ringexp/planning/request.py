"""A request for a plan, in one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ringexp.errors import UserError
from ringexp.planning.masks import CAUSAL, Mask

SPLITS = ("tokens", "kv")
"""The things that token counts place: queries and keys/values alike, or keys/values alone."""


@dataclass(frozen=True)
class PlanRequest:
    """The prompt to be planned and the rules by which it is.

    Attributes:
        seq_len: tokens of the prompt.
        tile: tokens that are given out together.
        layout: the rule from token counts to positions, by its name in `choices.LAYOUTS`.
        mask: which keys a query may see.
        split: "tokens" places queries and keys/values alike. "kv" places keys/values by the partitioner and
            queries evenly.
        chunks: the number of pieces in which prefill is done.
        starts: per sequence of a padded batch the first position that is no padding; () if none is padded.
        prefetch_hops: hops that a rank posts ahead of its compute; None for all.
        partitioner: the rule that gives out tokens, by its name in `choices.PARTITIONERS`.
        settings: the partitioner's own settings: its settings dataclass, or the options of a plug-in's.
    """

    seq_len: int
    tile: int = 1
    layout: str = "zigzag"
    mask: Mask = CAUSAL
    split: str = "tokens"
    chunks: int = 1
    starts: tuple[int, ...] = ()
    prefetch_hops: int | None = None
    partitioner: str = "even"
    settings: object = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"split={self.split} is unknown; choose one of {', '.join(SPLITS)}")

    @property
    def unchunked(self) -> PlanRequest:
        """The same request for the whole prompt at once."""
        return replace(self, chunks=1)
