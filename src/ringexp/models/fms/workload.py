"""A whole FMS language model as a workload."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from fms.models import get_model as fms_get_model
from torch import nn

from ringexp.config import FmsModelConfig
from ringexp.kernels import get_decode_kernel
from ringexp.models.checkpoints.check import CheckpointCheck, compare_with_hugging_face
from ringexp.models.checkpoints.load import load_checkpoint
from ringexp.models.fms import facts
from ringexp.models.fms.attention_op import ATTN_NAME
from ringexp.models.fms.generation import Decoder, prefill_with_cache
from ringexp.models.fms.outline import outline
from ringexp.models.fms.rotary import fuse_rotary
from ringexp.models.shapes import shape_of
from ringexp.models.workload import LocalInputs, broadcast_weights
from ringexp.planning import MemoryNeed, Plan, attention_token_bytes, rotation_bytes
from ringexp.ring.context import RingContext


class FmsWorkload:
    """A whole FMS language model; the output is the logits of the last position."""

    causal = True
    only_attention = False

    def __init__(self, config: FmsModelConfig, seq_len: int, device: torch.device, seed: int) -> None:
        self._config = config
        self.checkpoint_check: CheckpointCheck | None = None  # what it came to on the rank that did it
        self.dtype = getattr(torch, config.dtype)
        self._device = device
        if config.checkpoint:
            model = load_checkpoint(config.checkpoint, device, self.dtype, seq_len)
        else:
            model = _random_model(config, seq_len, device, seed)
        self._model = model.eval()
        facts.check_supported(self._model, seq_len)
        fuse_rotary(self._model)
        broadcast_weights(self._model)
        attention = facts.first_attention(self._model)
        self.num_heads, self.num_kv_heads = attention.nheads, attention.kvheads
        self.head_dim = attention.emb_kq_per_head

    @property
    def num_units(self) -> int:
        return len(self._layers)

    @cached_property
    def _layers(self) -> nn.ModuleList:
        base = self._model.get_submodule("base_model")
        layers = base.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def shape(self) -> str:
        return shape_of(self._config)

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        vocabulary = self._model.get_parameter("base_model.embedding.weight").shape[0]
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocabulary, (self._config.batch_size, seq_len), generator=generator)
        return ids.to(self._device)

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        if ring.plan.chunks:
            return prefill_with_cache(self._model, local.x, local.positions, ring)[0]
        return self._model(
            local.x, position_ids=local.positions, last_n_tokens=1, attn_name=ATTN_NAME, ring=ring
        )

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        hidden = self._model.get_submodule("base_model.embedding")(local.x)
        layer = self._layers[0]
        return lambda: layer(hidden, position_ids=local.positions, attn_name=ATTN_NAME, ring=ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        model = self._model if dtype == self.dtype else copy.deepcopy(self._model).to(dtype)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        logits, _ = model(x, position_ids=positions, last_n_tokens=1, use_cache=True, attn_name="sdpa_causal")
        return logits

    def decoder(self, ring: RingContext, speeds: Sequence[float], room: Sequence[int | None]) -> Decoder:
        """This rank's part in generating text."""
        kernel = get_decode_kernel(self._device, self.dtype, self.head_dim)
        return Decoder(self._model, ring, kernel, speeds, room)

    def agreeing(self, x: torch.Tensor, tokens: torch.Tensor) -> int:
        """How many of the tokens [B, N] are what this process alone would choose after x and those before.

        Computed with FMS's own attention, all at once; if all agree, greedy decoding gives these tokens. A
        token whose logits hold a NaN does not agree: there is no most likely one.
        """
        ids = torch.cat((x, tokens[:, :-1]), dim=1)
        positions = torch.arange(ids.shape[1], device=x.device).expand(x.shape[0], -1)
        logits, _ = self._model(
            ids,
            position_ids=positions,
            last_n_tokens=tokens.shape[1],
            use_cache=True,
            attn_name="sdpa_causal",
        )
        return int(((logits.argmax(-1) == tokens) & ~logits.isnan().any(-1)).sum())

    def compare_with_hugging_face(self, x: torch.Tensor) -> CheckpointCheck:
        """Compare the checkpoint with transformers' own model, on the beginning of the prompt x [1, S]."""
        assert self._config.checkpoint
        return compare_with_hugging_face(self._model, self._config.checkpoint, x)

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor | None:
        return reference if rank == plan.owner_of_last else None

    def flops(self, plan: Plan, rank: int) -> float:
        head = 2 * self._config.batch_size * self._model.get_parameter("head.weight").numel()
        return head + len(self._layers) * self.unit_flops(plan, rank)

    def unit_flops(self, plan: Plan, rank: int) -> float:
        layer = self._layers[0]
        per_token = facts.linear_flops_per_token(layer)
        per_pair = facts.attention_flops_per_pair(facts.first_attention(layer))
        return self._config.batch_size * (per_token * plan.real_tokens(rank) + per_pair * plan.pairs(rank))

    @property
    def memory(self) -> MemoryNeed:
        batch, itemsize = self._config.batch_size, self.dtype.itemsize
        emb_dim = self._model.get_parameter("base_model.embedding.weight").shape[1]
        attention = attention_token_bytes(self.num_heads, self.num_kv_heads, self.head_dim, itemsize)
        layer = max(attention, facts.feed_forward_token_bytes(self._layers[0], emb_dim, itemsize))
        ids, residuals = 8, 3 * emb_dim * itemsize  # embedded, kept for the sum, normed
        return MemoryNeed(
            fixed=facts.weight_bytes(self._model),
            prompt_token=batch * ids + rotation_bytes(self.head_dim),
            own_token=batch * (2 * ids + residuals + layer),
            kv_token=2 * batch * self.num_kv_heads * self.head_dim * itemsize,
        )


def _random_model(config: FmsModelConfig, seq_len: int, device: torch.device, seed: int) -> nn.Module:
    """Build a model with random weights. Raise UserError for what `outline` refuses."""
    outline(config, seq_len)
    torch.manual_seed(seed)
    return fms_get_model(
        config.architecture,
        config.variant,
        device_type=device.type,
        data_type=getattr(torch, config.dtype),
        distributed_strategy="none",
        **{"max_expected_seq_len": seq_len, **config.overrides},
    )
