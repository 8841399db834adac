"""The shape of a model: what decides its operations, bytes, parameters and memory. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from ringexp.planning import MemoryNeed, Plan, attention_token_bytes, ring_token_bytes, rotation_bytes
from ringexp.planning.flops import pair_flops
from ringexp.planning.masks import CAUSAL, Mask

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
"""Bytes of one number of each dtype."""
TOKEN_ID_BYTES = 8


@dataclass(frozen=True)
class ModelShape:
    """A model of equal layers. Embedding and head are left out: the head is computed for one position only.

    There are three kinds: whole models (`hidden_dim` above 0), attention modules with projections, and ring
    attention alone (`projections=False`).

    Attributes:
        layers: the number of layers.
        emb_dim: width of the hidden state between layers.
        num_heads: query heads.
        num_kv_heads: heads of keys and values.
        head_dim: width of a head.
        hidden_dim: width of the gated feed-forward part; 0 for none.
        experts: feed-forward parts per layer.
        experts_per_token: feed-forward parts that compute each token.
        projections: whether attention has linear projections of its inputs and output.
        mask: which keys a query may see.
        batch_size: sequences that are computed together.
        itemsize: bytes of one number.
    """

    layers: int = 1
    emb_dim: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    hidden_dim: int = 0
    experts: int = 1
    experts_per_token: int = 1
    projections: bool = True
    mask: Mask = CAUSAL
    batch_size: int = 1
    itemsize: int = 2

    @property
    def only_attention(self) -> bool:
        """Tell whether there are no linear layers."""
        return not self.projections and not self.hidden_dim

    @property
    def layer_parameters(self) -> int:
        """Count the weights of one layer, without norms and biases."""
        return self._weights(self.experts)

    @property
    def token_flops(self) -> int:
        """Count the operations of one layer's linear parts for one token of every sequence of the batch."""
        return 2 * self.batch_size * self._weights(self.experts_per_token)

    @property
    def pair_flops(self) -> int:
        """Count the operations of one layer's attention for one query-key pair of every sequence."""
        return pair_flops(self.num_heads, self.head_dim, self.batch_size)

    def layer_flops(self, plan: Plan, rank: int) -> float:
        """Count the operations of one layer on one rank; padding does not count."""
        return self.token_flops * plan.real_tokens(rank) + self.pair_flops * plan.pairs(rank)

    @property
    def kv_token_bytes(self) -> int:
        """Return the bytes of one token's keys and values in one layer, which each hop carries."""
        return 2 * self.batch_size * self.num_kv_heads * self.head_dim * self.itemsize

    @property
    def merged_token_bytes(self) -> int:
        """Return the bytes that merging one block reads and writes per token: the output so far, float32."""
        return 2 * 4 * self.batch_size * self.num_heads * self.head_dim

    @property
    def memory(self) -> MemoryNeed:
        """Return the memory per rank, with all layers on every rank."""
        if self.only_attention:
            prompt_token, own_token = self._ring_token_bytes()
        elif self.hidden_dim:
            prompt_token, own_token = self._whole_token_bytes()
        else:
            prompt_token, own_token = self._module_token_bytes()
        rotations = 0 if self.only_attention else rotation_bytes(self.head_dim)
        return MemoryNeed(
            fixed=self.layers * self.layer_parameters * self.itemsize,
            prompt_token=self.batch_size * prompt_token + rotations,
            own_token=self.batch_size * own_token,
            kv_token=self.kv_token_bytes,
        )

    def _ring_token_bytes(self) -> tuple[int, int]:
        """Return (bytes per token of the prompt, bytes per own token) of ring attention alone."""
        x_bytes = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim * self.itemsize
        last_output = self.num_heads * self.head_dim * self.itemsize
        ring = ring_token_bytes(self.num_heads, self.num_kv_heads, self.head_dim, self.itemsize)
        return x_bytes, x_bytes + last_output + ring

    def _module_token_bytes(self) -> tuple[int, int]:
        """Return the same of an attention module: this iteration's input and the last one's output."""
        x_bytes = self.emb_dim * self.itemsize
        return x_bytes, 2 * x_bytes + self._attention_token_bytes

    def _whole_token_bytes(self) -> tuple[int, int]:
        """Return the same of a whole model, whose residuals are the embedded, the kept and the normed state.

        The feed-forward part holds gates and values, and as much again for the activation and the product.
        """
        residuals = 3 * self.emb_dim * self.itemsize
        feed_forward = 4 * self.experts_per_token * self.hidden_dim * self.itemsize
        layer = max(self._attention_token_bytes, feed_forward)
        return TOKEN_ID_BYTES, 2 * TOKEN_ID_BYTES + residuals + layer

    @property
    def _attention_token_bytes(self) -> int:
        return attention_token_bytes(self.num_heads, self.num_kv_heads, self.head_dim, self.itemsize)

    def _weights(self, experts: int) -> int:
        """Count the weights of one layer with so many of its experts."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        attention = self.emb_dim * heads * self.head_dim if self.projections else 0
        gates = self.emb_dim * self.experts if self.experts > 1 else 0
        return attention + experts * 3 * self.emb_dim * self.hidden_dim + gates
