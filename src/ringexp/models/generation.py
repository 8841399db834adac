"""Greedy generation with a prompt and a cache that are spread over the ranks of a ring.

logits, cache = decoder.prefill(ids_of_this_rank, positions_of_this_rank, new_tokens=32)
for ...: logits = decoder.step(token, cache)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ringexp.kernels import Kernel
from ringexp.models.attention_op import ATTN_NAME
from ringexp.planning import next_owner, owners
from ringexp.ring.decode import DecodeContext, gather
from ringexp.ring.prefill import RingContext


class RingCache(list[tuple[torch.Tensor, torch.Tensor]]):
    """A rank's cache as FMS hands it on: keys and values [B, slots, Hkv, D] of every layer.

    held: how many slots each rank has filled. length: slots of the sequence so far. starts: of each sequence
    the first slot that is no padding.
    """

    def __init__(self, layers: Any, held: Sequence[int], length: int, starts: Sequence[int]) -> None:
        super().__init__(layers)
        self.held, self.length, self.starts = list(held), length, list(starts)
        self._offsets: torch.Tensor | None = None

    def rope_positions(self, device: torch.device) -> torch.Tensor:
        """The next token's position in its own sequence, [B, 1]; waits for the device the first time only."""
        if self._offsets is None:
            self._offsets = torch.tensor(self.starts, device=device).unsqueeze(1)
        return self.length - self._offsets


@dataclass(frozen=True)
class Decoder:
    """A whole FMS model on one rank. All members of the ring call `prefill` and `step` alike.

    kernel: for decoding, where every token is a shape of its own. speeds and room decide which rank keeps a
    token, see `planning.next_owner`; the default speeds are the plan's token counts.
    """

    model: nn.Module
    ring: RingContext
    kernel: Kernel
    speeds: Sequence[float] = ()
    room: Sequence[int | None] = field(default=())

    @cached_property
    def _capacities(self) -> tuple[Sequence[float], Sequence[int | None]]:
        tokens = self.ring.plan.tokens
        return self.speeds or tokens, self.room or [None] * len(tokens)

    def prefill(
        self, ids: torch.Tensor, positions: torch.Tensor, new_tokens: int = 0, last_n_tokens: int = 1
    ) -> tuple[torch.Tensor, RingCache]:
        """Logits of this rank's last tokens, or of all with last_n_tokens=0, and the cache of its slots.

        ids and positions: [B, L], this rank's. Memory for its part of `new_tokens` is taken at once. The
        prompt's next token is what the rank that holds the last position has.
        """
        plan, rank = self.ring.plan, self.ring.rank
        mine = owners(plan.tokens, *self._capacities, new_tokens).count(rank)
        ring = replace(self.ring, capacity=plan.tokens[rank] + mine)
        logits, layers = prefill_with_cache(self.model, ids, positions, ring, last_n_tokens)
        starts = plan.starts or [0] * ids.shape[0]
        return logits, RingCache(layers, plan.tokens, plan.seq_len, starts)

    def step(self, token: torch.Tensor, cache: RingCache) -> torch.Tensor:
        """Logits [B, 1, V] after token [B, 1], the same token on all ranks; the cache grows by it."""
        context = self.context(cache)
        logits, layers = self.model(
            token,
            position_ids=cache.rope_positions(token.device),
            past_key_value_states=cache,
            use_cache=True,
            attn_name=ATTN_NAME,
            ring=context,
        )
        cache[:] = layers
        cache.held[context.owner] += 1
        cache.length += 1
        return logits

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The most likely next token [B, 1], on all members as the rank with the last position sees it.

        Linear layers may round differently on different hardware, so ranks do not choose each for itself.
        """
        ring = self.ring
        token = logits[:, -1:].argmax(-1)
        tokens = gather(token, ring.plan.tokens, ring.transport, ring.clock)
        return tokens[ring.plan.members.index(ring.plan.owner_of_last)]

    def context(self, cache: RingCache) -> DecodeContext:
        """For the token that is next."""
        ring = self.ring
        shard = ring.plan.q_shards[ring.rank]
        return DecodeContext(
            rank=ring.rank,
            held=tuple(cache.held),
            owner=next_owner(cache.held, *self._capacities),
            transport=ring.transport,
            kernel=self.kernel,
            clock=ring.clock,
            firsts=[shard.since(start)[0] for start in cache.starts],
        )


def prefill_with_cache(
    model: nn.Module, ids: torch.Tensor, positions: torch.Tensor, ring: RingContext, last_n_tokens: int = 1
) -> tuple[torch.Tensor, Any]:
    """Logits of this rank's last tokens and its cache, chunk by chunk if the plan has chunks.

    ids and positions: [B, L]. With chunks, the logits are of the last one only.
    """
    logits, layers, held = torch.empty(0), None, 0
    for plan in ring.plan.chunks or (ring.plan,):
        mine = slice(held, held + plan.tokens[ring.rank])
        logits, layers = model(
            ids[:, mine],
            position_ids=positions[:, mine],
            past_key_value_states=layers,
            last_n_tokens=last_n_tokens,
            use_cache=True,
            attn_name=ATTN_NAME,
            ring=replace(ring, plan=plan, held=held, capacity=ring.capacity or ids.shape[1]),
        )
        held = mine.stop
    return logits, layers


@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: torch.Tensor | Sequence[torch.Tensor],
    max_new_tokens: int,
    *,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
) -> torch.Tensor:
    """Greedy continuation of a prompt by a model of `get_model(..., distributed_strategy="ring")`.

    ids: [B, S], or a prompt [S] each, of unequal lengths, which are padded on the left with pad_token_id.
    Every rank passes all of them and gets all of the result, [B, S + new]. Ends early once every sequence
    has had eos_token_id; without it no host waits for a device.
    """
    from fms.utils.generation import pad_input_ids

    positions = None
    if not isinstance(ids, torch.Tensor):
        ids, padding = pad_input_ids(list(ids), pad_token_id=pad_token_id)
        positions = padding["position_ids"]
    logits, cache = model(
        ids, position_ids=positions, use_cache=True, last_n_tokens=1, new_tokens=max_new_tokens
    )
    tokens = [ids]
    ended = torch.zeros(ids.shape[0], 1, dtype=torch.bool, device=ids.device)
    for index in range(max_new_tokens):
        token = logits[:, -1:].argmax(-1)
        tokens.append(token)
        if eos_token_id is not None:
            ended |= token == eos_token_id
            if bool(ended.all()):
                break
        if index + 1 < max_new_tokens:
            logits, cache = model(token, past_key_value_states=cache, use_cache=True)
    return torch.cat(tokens, dim=1)
