"""Functions with which ranks of a test pool generate tokens. Ranks import them by name."""

from __future__ import annotations

from typing import Any

import torch
from fms.utils.generation import generate as fms_generate

from ringexp.models.fms.generation import generate
from ringexp.models.fms.strategy import get_model
from support.api_ranks import error_of
from support.model_ranks import TINY, ring_model


@torch.inference_mode()
def continued(
    rank: int, folder: str, block_lens: list[int], prompts: list[torch.Tensor], settings: list[dict[str, Any]]
) -> list[torch.Tensor]:
    """Return continuations of the prompts by a checkpoint on the ring, one for each setting of `generate`."""
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


SAMPLED = [
    {"use_cache": True},
    {"use_cache": True, "temperature": 0.6, "top_k": 0},
    {"use_cache": True, "extra_kwargs": {"only_last_token": True}},
    {"use_cache": True, "eos_token_id": 3, "timing": "e2e"},
]
"""Ways of FMS's own `generate` to draw."""


@torch.inference_mode()
def sampled(rank: int, block_lens: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw in each `SAMPLED` way: over the ring, each rank seeded differently, and on one process."""
    model = ring_model(rank, "llama", TINY["llama"], block_lens, "zigzag")
    ids = torch.randint(1, 64, (3, sum(block_lens)), generator=torch.Generator().manual_seed(3))

    def draw(by: torch.nn.Module, seed: int, how: dict[str, Any]) -> torch.Tensor:
        torch.manual_seed(seed)
        drawn = fms_generate(by, ids, max_new_tokens=6, do_sample=True, **how)
        return drawn if isinstance(drawn, torch.Tensor) else drawn[0]

    return [(draw(model, 100 + rank, how), draw(model.model, 100, how)) for how in SAMPLED]


@torch.inference_mode()
def misused(rank: int, case: str) -> str:
    """Return the UserError of a way of FMS's `generate`, or of a call, that a ring model cannot serve."""
    block_lens = [4, 3] if torch.distributed.get_world_size() == 2 else [3, 2, 2]
    model = ring_model(rank, "llama", TINY["llama"], block_lens, "zigzag")
    ids = torch.arange(1, 8).expand(2, 7)
    how: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "use_cache": True}
    if case == "contiguous cache":
        return error_of(lambda: fms_generate(model, ids, contiguous_cache=True, **how))
    if case == "attention":
        return error_of(lambda: model(ids, attn_name="sdpa_causal"))
    if case == "prompts":
        return error_of(lambda: model(ids + rank // 2))
    if case == "two places":  # whose change cancels out in a sum weighted by place
        return error_of(lambda: model(ids + torch.tensor([2, -1, 0, 0, 0, 0, 0]) * (rank // 2)))
    if case == "shapes":
        return error_of(lambda: model(ids[:, : 7 - rank // 2]))
    _, cache = model(ids, use_cache=True)
    if case == "tokens":
        return error_of(lambda: model(torch.full((2, 1), 1 + rank), past_key_value_states=cache))
    return error_of(lambda: model(ids[:, :2], past_key_value_states=cache))


@torch.inference_mode()
def of_any_length(
    rank: int, speeds: Any, lengths: list[int], how: dict[str, Any]
) -> list[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Run one ring model by speeds on prompts of many lengths.

    Returns per prompt: tokens per rank, the logits of the ring and of one process, and the continuations of
    the ring and of one process.
    """
    torch.manual_seed(rank)
    model: Any = get_model(
        "llama", "micro", distributed_strategy="ring", speeds=speeds, **TINY["llama"], **how
    )
    random, found = torch.Generator().manual_seed(3), []
    for length in lengths:
        ids = torch.randint(1, 64, (2, length), generator=random)
        greedy: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
        alone = fms_generate(model.model, ids, use_cache=True, **greedy)
        whole = model.model(ids, attn_name="sdpa_causal", use_cache=True)[0]
        for use_cache in (True, False):
            assert torch.equal(fms_generate(model, ids, use_cache=use_cache, **greedy), alone)
        plan = model.distributed_strategy.plan_for(length)
        found.append((plan.tokens, model(ids), whole, generate(model, ids, 5), alone))
    return found


@torch.inference_mode()
def padded_by_speed(rank: int, speeds: Any, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return continuations of a padded batch by a ring model, and those of each prompt by one process."""
    model: Any = get_model("llama", "micro", distributed_strategy="ring", speeds=speeds, **TINY["llama"])
    random = torch.Generator().manual_seed(3)
    prompts = [torch.randint(1, 64, (length,), generator=random) for length in lengths]
    alone = [
        fms_generate(model.model, ids, max_new_tokens=4, do_sample=False, use_cache=True)[-4:]
        for ids in prompts
    ]
    return generate(model, prompts, 4)[:, -4:], torch.stack(alone)


def misplanned(rank: int, length: int, how: dict[str, Any]) -> str:
    """Return the UserError of a prompt that the ring model cannot take."""

    def call() -> object:
        made = get_model("llama", "micro", distributed_strategy="ring", **TINY["llama"], **how)
        return made(torch.ones(1, length, dtype=torch.long))

    return error_of(call)
