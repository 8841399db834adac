"""Greedy generation with a prompt and a cache that are spread over the ranks of a ring.

logits, cache = decoder.prefill(ids_of_this_rank, positions_of_this_rank, new_tokens=32)
token = decoder.choose(logits)
for ...: logits, token = decoder.step(token, cache)

On CUDA all of a step, down to the choice of the next token, is one replay of a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeGuard

import torch
from torch import nn

from ringexp.errors import UserError, whole_number
from ringexp.kernels import DecodeKernel, Slots
from ringexp.models.fms.attention_op import ATTN_NAME
from ringexp.models.fms.cache import GROWTH, RingCache
from ringexp.planning import next_owner, owners
from ringexp.ring.clock import Clock, NoClock
from ringexp.ring.context import RingContext
from ringexp.ring.decode import DecodeContext, gather
from ringexp.ring.eager import eager
from ringexp.ring.ring_group import ring_group_of

if TYPE_CHECKING:
    from ringexp.models.fms.ring_strategy import RingAttentionStrategy


@dataclass(frozen=True)
class Decoder:
    """A whole FMS model on one rank. All members of the ring call `prefill` and `step` together.

    Attributes:
        model: FMS's model.
        ring: the prompt's ring.
        kernel: what attends to the cache.
        speeds: one per rank; with max_tokens they decide which rank keeps a new token, see
            `planning.next_owner`. Empty: the plan's token counts.
        max_tokens: the most tokens that each rank's memory holds; None for any number.
    """

    model: nn.Module
    ring: RingContext
    kernel: DecodeKernel
    speeds: Sequence[float] = ()
    max_tokens: Sequence[int | None] = ()

    @cached_property
    def _capacities(self) -> tuple[Sequence[float], Sequence[int | None]]:
        tokens = self.ring.plan.tokens
        return self.speeds or tokens, self.max_tokens or [None] * len(tokens)

    @property
    def captures(self) -> bool:
        """Tell whether steps are captured in a CUDA graph."""
        return self.kernel.replayable and self.ring.transport.capturable

    @property
    def _clock(self) -> Clock:
        return NoClock() if self.captures else self.ring.clock  # else its events would belong to the graph

    def prefill(
        self, ids: torch.Tensor, positions: torch.Tensor, new_tokens: int = 0, last_n_tokens: int = 1
    ) -> tuple[torch.Tensor, RingCache]:
        """Compute this rank's part of the prompt, and keep it in a cache.

        Args:
            ids: this rank's token ids [B, L].
            positions: their positions [B, L].
            new_tokens: new tokens, for which this rank allocates its part of the cache at once.
            last_n_tokens: 1 for the logits of this rank's last token, 0 for those of all its tokens.

        Returns:
            The logits and the cache. The rank with the last position has those that decide the next token.
        """
        plan, rank = self.ring.plan, self.ring.rank
        kept = owners(plan.tokens, *self._capacities, new_tokens).count(rank)
        spare = kept + 1 if new_tokens else GROWTH  # a token of another rank needs a slot too, for a while
        ring = replace(self.ring, capacity=plan.tokens[rank] + spare)
        logits, layers = prefill_with_cache(self.model, ids, positions, ring, last_n_tokens)
        starts = plan.starts or [0] * ids.shape[0]
        firsts = [plan.q_shards[rank].since(start)[0] for start in starts]
        slots = Slots(firsts, plan.tokens[rank], ids.device)
        return logits, RingCache(layers, plan, starts, slots)

    def empty_cache(self, batch: int, device: torch.device) -> RingCache:
        """Return the cache of a rank that is not in the ring."""
        plan = self.ring.plan
        return RingCache([], plan, plan.starts or [0] * batch, Slots([0] * batch, 0, device))

    def step(self, token: torch.Tensor, cache: RingCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits [B, 1, V] after token [B, 1], and the token [B, 1] that `choose` takes by them.

        All ranks pass the same token; the cache grows by it. The next step may overwrite both results.
        """
        self._admit(cache)
        captured_with = self.ring.transport if self.captures else None
        logits, chosen, _ = cache.step(token, lambda token: self._forward(token, cache), captured_with)
        cache.advance()
        return logits, chosen

    def pass_by(self, cache: RingCache) -> None:
        """Count a token that the ring's members decode, on a rank that is not one of them."""
        self._admit(cache)
        cache.advance()

    def _admit(self, cache: RingCache) -> None:
        cache.admit(next_owner(cache.filled_slots, *self._capacities), self.ring.rank)

    def _forward(self, token: torch.Tensor, cache: RingCache) -> tuple[torch.Tensor, torch.Tensor, object]:
        """Compute a step. Return its transfers too: a graph points to their events, which must live on."""
        ring = self.ring
        logits, _ = self.model(
            token,
            position_ids=cache.positions,
            past_key_value_states=cache,
            use_cache=True,
            attn_name=ATTN_NAME,
            ring=DecodeContext(ring.plan.tokens, ring.transport, self.kernel, self._clock, cache.slots),
        )
        return logits, self.choose(logits), ring.transport.transfers.take()

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the most likely next token [B, 1], on all members the choice of the last position's rank.

        Linear layers may round differently on different hardware, so a rank does not choose for itself.
        """
        ring = self.ring
        token = logits[:, -1:].argmax(-1)
        tokens = gather(token, ring.plan.tokens, ring.transport, self._clock)
        return tokens[ring.plan.members.index(ring.plan.owner_of_last)]


def prefill_with_cache(
    model: nn.Module, ids: torch.Tensor, positions: torch.Tensor, ring: RingContext, last_n_tokens: int = 1
) -> tuple[torch.Tensor, Iterable[tuple[torch.Tensor, torch.Tensor]]]:
    """Compute this rank's part of the prompt, chunk by chunk if the plan has chunks.

    Args:
        model: FMS's model.
        ids: this rank's token ids [B, L].
        positions: their positions [B, L].
        ring: the prompt's ring.
        last_n_tokens: 1 for the logits of this rank's last token, 0 for those of all its tokens.

    Returns:
        The logits, with chunks those of the last chunk only, and the cache of every layer.
    """
    logits, layers, computed = torch.empty(0), None, 0
    for plan in ring.plan.chunks or (ring.plan,):
        tokens = slice(computed, computed + plan.tokens[ring.rank])
        logits, layers = model(
            ids[:, tokens],
            position_ids=positions[:, tokens],
            past_key_value_states=layers,
            last_n_tokens=last_n_tokens,
            use_cache=True,
            attn_name=ATTN_NAME,
            ring=replace(ring, plan=plan, filled=computed, capacity=ring.capacity or ids.shape[1]),
        )
        computed = tokens.stop
    assert layers is not None
    return logits, layers


class _Generating(Protocol):
    """The part of a ring model that `generate` uses."""

    model: nn.Module
    distributed_strategy: RingAttentionStrategy

    def __call__(self, x: torch.Tensor, **settings: object) -> tuple[torch.Tensor, RingCache]: ...

    def next_token(self, token: torch.Tensor, cache: RingCache) -> torch.Tensor: ...


@eager
@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: torch.Tensor | Sequence[torch.Tensor],
    max_new_tokens: int,
    *,
    eos_token_id: int | Iterable[int] | None = None,
    pad_token_id: int | None = None,
) -> torch.Tensor:
    """Continue prompts greedily with a model of `get_model(..., distributed_strategy="ring")`.

    Every rank passes all prompts and gets the whole result. Without eos_token_id no host waits for a device.

    Args:
        model: the ring model.
        ids: token ids [B, S], or one tensor [S] per prompt. Shorter prompts are padded on the left.
        max_new_tokens: how many tokens each sequence gets at most.
        eos_token_id: the token that ends a sequence, or several of them, as generation configs of Hugging
            Face have them. Generation ends early when all sequences have ended.
        pad_token_id: the token that fills up prompts on the left and sequences that have ended. None: the
            first eos_token_id, as in Hugging Face, or 0.

    Returns:
        Token ids [B, S + new].

    Raises:
        UserError: for an argument that cannot work.
        RingError: where another rank has failed.
    """
    if not _generates(model):
        raise UserError('generate needs a model of get_model(..., distributed_strategy="ring")')
    with ring_group_of(model.distributed_strategy.group):
        return _generated(model, ids, max_new_tokens, eos_token_id, pad_token_id)


def _generates(model: object) -> TypeGuard[_Generating]:
    """Tell whether a model has what `generate` needs.

    isinstance with a protocol does not see the submodules of a torch module from Python 3.12 on.
    """
    return all(hasattr(model, name) for name in ("model", "distributed_strategy", "next_token"))


def _generated(
    model: _Generating,
    ids: torch.Tensor | Sequence[torch.Tensor],
    max_new_tokens: int,
    eos_token_id: int | Iterable[int] | None,
    pad_token_id: int | None,
) -> torch.Tensor:
    """Generate tokens as `generate` documents."""
    from fms.utils.generation import pad_input_ids

    ends = _token_ids("eos_token_id", eos_token_id)
    pad = _padding_token(model, pad_token_id, ends)
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
    positions = None
    if not isinstance(ids, torch.Tensor):
        prompts = list(ids)
        if not prompts or any(x.dim() != 1 or not len(x) for x in prompts):
            raise UserError(f"ids needs one tensor [S] per prompt, got {[list(x.shape) for x in prompts]}")
        ids, padding = pad_input_ids(prompts, pad_token_id=pad)
        positions = padding["position_ids"]
    logits, cache = model(
        ids, position_ids=positions, use_cache=True, last_n_tokens=1, new_tokens=max_new_tokens
    )
    tokens = [ids]
    ended = torch.zeros(ids.shape[0], 1, dtype=torch.bool, device=ids.device)
    end_ids = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
    token = logits[:, -1:].argmax(-1)
    for step in range(max_new_tokens):
        if ends:
            token = token.masked_fill(ended, pad)
        tokens.append(token)
        if ends:
            ended |= torch.isin(token, end_ids)
            if bool(ended.all()):
                break
        if step + 1 < max_new_tokens:
            token = model.next_token(token, cache)
    return torch.cat(tokens, dim=1)


def _token_ids(name: str, value: int | Iterable[int] | torch.Tensor | None) -> list[int]:
    """Return the token ids of an argument that takes none, one or several of them."""
    if isinstance(value, torch.Tensor):
        value = value.flatten().tolist()
    given = list(value) if isinstance(value, Iterable) else [] if value is None else [value]
    try:
        return [whole_number(name, token, least=0) for token in given]
    except UserError as error:
        raise UserError(f"{name}={value} must be token ids of at least 0, or None") from error


def _padding_token(model: _Generating, pad_token_id: int | None, ends: Sequence[int]) -> int:
    """Return the token that stands for nothing: `pad_token_id`, or a default that `generate` documents."""
    if pad_token_id is None:
        return ends[0] if ends else 0
    (pad,) = _token_ids("pad_token_id", [pad_token_id])
    vocabulary = getattr(getattr(model.model, "config", None), "src_vocab_size", None)
    if vocabulary is not None and pad >= vocabulary:
        raise UserError(f"pad_token_id={pad} is beyond the model's vocabulary of {vocabulary} tokens")
    return pad
