"""What the ranks of a test pool generate; importable, so that it travels to them by name."""

from __future__ import annotations

from typing import Any

import torch

from ringexp.models.generation import generate
from ringexp.models.strategy import get_model
from support.api_ranks import error_of
from support.model_ranks import TINY, ring_model


@torch.inference_mode()
def continued(
    rank: int, folder: str, block_lens: list[int], prompts: list[torch.Tensor], settings: list[dict[str, Any]]
) -> list[torch.Tensor]:
    """Continuations of the prompts by a checkpoint on the ring, one for each of the settings of `generate`."""
    model = get_model(
        "hf_pretrained",
        model_path=folder,
        max_expected_seq_len=sum(block_lens) + 64,
        distributed_strategy="ring",
        block_lens=block_lens,
    )
    return [generate(model, prompts, **how) for how in settings]


def misasked(rank: int, arguments: dict[str, Any]) -> str:
    """Return the UserError of `generate` with these arguments."""
    model = ring_model(rank, "llama", TINY["llama"], [4, 3], "zigzag")
    given = {"ids": torch.ones(1, 7, dtype=torch.long), "max_new_tokens": 2} | arguments
    return error_of(lambda: generate(model, **given))
