"""Protocols of the models that an experiment runs; every model library implements them.

A workload is the same object on every rank: equal weights, inputs by global position. `forward` computes one
rank's part through the ring; `reference` computes everything on one process, by the library's own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ringexp.models.checkpoints.check import CheckpointCheck
from ringexp.models.inputs import LocalInputs
from ringexp.models.shape import ModelShape
from ringexp.planning import MemoryNeed, Plan
from ringexp.ring.context import RingContext


class Workload(Protocol):
    """A model that is built: what runs, what it costs, and what is correct."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def speed_key(self) -> str:
        """Name everything that decides the model's speed. Calibration rows and results carry this name."""
        ...

    @property
    def memory(self) -> MemoryNeed:
        """Return what `forward` needs of a rank's memory."""
        ...

    @property
    def text_model(self) -> TextModel | None:
        """Return what decodes text; None for a single layer, which cannot."""
        ...

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        """Return a random prompt [B, S, ...] that is equal on all ranks."""
        ...

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        """Compute this rank's output; `part_of` says which part of the reference it should equal."""
        ...

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        """Return the repeated piece of `forward`, one layer, which speed measurements run."""
        ...

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Compute the output for the whole prompt x on this process alone, in `dtype`."""
        ...

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor | None:
        """Return what `forward` of `rank` should have given; None if its output does not count."""
        ...

    def flops(self, plan: Plan, rank: int) -> float:
        """Count the operations of `forward` on `rank`, in matrix products."""
        ...


class TextModel(Protocol):
    """A whole language model's part in decoding text and in checking it."""

    checkpoint: str | None
    """The Hugging Face folder of the weights and the tokenizer; None for random weights."""
    checkpoint_check: CheckpointCheck | None
    """The outcome of `compare_with_hugging_face`, once it is known."""

    def generator(
        self, ring: RingContext, speeds: Sequence[float], max_tokens: Sequence[int | None]
    ) -> Generator:
        """Return this rank's part in decoding.

        Args:
            ring: the prompt's ring.
            speeds: one per rank; with `max_tokens` they decide which rank keeps a new token. Empty: the
                plan's token counts.
            max_tokens: the most tokens that each rank's memory holds; None for any number.
        """
        ...

    def agreeing(self, x: torch.Tensor, tokens: torch.Tensor) -> int:
        """Count the tokens [B, N] that this process alone would choose after x [B, S] and those before."""
        ...

    def compare_with_hugging_face(self, x: torch.Tensor) -> CheckpointCheck:
        """Compare the checkpoint with transformers' own model, on the beginning of the prompt x [1, S]."""
        ...


class Generator(Protocol):
    """Greedy decoding of one batch on one rank. All members of the ring call its methods together."""

    @property
    def ring(self) -> RingContext:
        """Return the prompt's ring, with the clock that times what is computed."""
        ...

    def prefill(self, local: LocalInputs, new_tokens: int) -> torch.Tensor:
        """Compute this rank's part of the prompt, and keep it in a cache with memory for `new_tokens`.

        Returns:
            The most likely next token [B, 1], the same on all members.
        """
        ...

    def next_token(self, token: torch.Tensor) -> torch.Tensor:
        """Return the most likely token [B, 1] after token [B, 1]. The next call may overwrite it."""
        ...

    @property
    def kept(self) -> int:
        """Return the number of new tokens whose keys and values this rank keeps."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of all keys and values that this rank keeps."""
        ...
