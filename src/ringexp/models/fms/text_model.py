"""A whole FMS model's part in decoding text and in checking it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ringexp.kernels import get_decode_kernel
from ringexp.models.checkpoints.check import CheckpointCheck, compare_with_hugging_face
from ringexp.models.fms.cache import RingCache
from ringexp.models.fms.facts import first_attention
from ringexp.models.fms.generation import Decoder
from ringexp.models.inputs import LocalInputs
from ringexp.ring.context import RingContext


class FmsTextModel:
    """The `TextModel` of an FMS model.

    Attributes:
        checkpoint: the Hugging Face folder of the weights; None for random weights.
        checkpoint_check: the outcome of `compare_with_hugging_face`, once it is known.
    """

    def __init__(
        self, model: nn.Module, checkpoint: str | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._model, self._device, self._dtype = model, device, dtype
        self.checkpoint = checkpoint
        self.checkpoint_check: CheckpointCheck | None = None

    def generator(
        self, ring: RingContext, speeds: Sequence[float] = (), max_tokens: Sequence[int | None] = ()
    ) -> FmsGenerator:
        """Return this rank's part in decoding, as `TextModel.generator` says."""
        head_dim = first_attention(self._model).emb_kq_per_head
        kernel = get_decode_kernel(self._device, self._dtype, head_dim)
        return FmsGenerator(Decoder(self._model, ring, kernel, speeds, max_tokens))

    def agreeing(self, x: torch.Tensor, tokens: torch.Tensor) -> int:
        """Count the tokens [B, N] that this process alone would choose after x [B, S] and those before.

        All are computed at once, with FMS's own attention. If all agree, greedy decoding gives these tokens.
        A token whose logits hold a NaN does not agree: there is no most likely one.
        """
        ids = torch.cat((x, tokens[:, :-1]), dim=1)
        positions = torch.arange(ids.shape[1], device=x.device).expand(ids.shape[0], -1)
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
        assert self.checkpoint is not None, "random weights have no counterpart to compare with"
        return compare_with_hugging_face(self._model, self.checkpoint, x)


class FmsGenerator:
    """The `Generator` of an FMS model: a decoder with the cache of one batch."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._prefilled: RingCache | None = None

    @property
    def ring(self) -> RingContext:
        return self._decoder.ring

    def prefill(self, local: LocalInputs, new_tokens: int) -> torch.Tensor:
        """Compute the prompt and return its next token [B, 1], as `Generator.prefill` says."""
        logits, self._prefilled = self._decoder.prefill(local.x, local.positions, new_tokens)
        return self._decoder.choose(logits)

    def next_token(self, token: torch.Tensor) -> torch.Tensor:
        """Return the most likely token [B, 1] after token [B, 1]. The next call may overwrite it."""
        return self._decoder.step(token, self._cache)[1]

    @property
    def kept(self) -> int:
        """Return the number of new tokens whose keys and values this rank keeps."""
        rank = self.ring.rank
        return self._cache.filled_slots[rank] - self.ring.plan.tokens[rank]

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of all keys and values that this rank keeps."""
        filled = self._cache.filled_slots[self.ring.rank]
        return sum(x[:, :filled].nbytes for layer in self._cache for x in layer)

    @property
    def _cache(self) -> RingCache:
        assert self._prefilled is not None, "prefill comes first"
        return self._prefilled
