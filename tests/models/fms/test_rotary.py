"""The position encoder that modules are given in place of FMS's own."""

from __future__ import annotations

import pytest
import torch
from fms.modules.attention import MultiHeadAttention
from fms.modules.positions import RotaryEmbedding
from torch import nn

from ringexp.models.fms.rotary import FusedRotaryEmbedding, fuse_rotary


def attention(rotary, head_dim=64):
    module = MultiHeadAttention(4 * head_dim, head_dim, head_dim, 4, 2, position_encoder=rotary)
    module.reset_parameters()
    return module.eval()


def test_layers_that_share_a_position_encoder_still_do():
    rotary = RotaryEmbedding(64, max_seq_len=128)
    layers = nn.ModuleList([attention(rotary), attention(rotary)])
    fuse_rotary(layers)
    assert isinstance(layers[0].position_encoder, FusedRotaryEmbedding)
    assert layers[0].position_encoder is layers[1].position_encoder


def test_on_the_cpu_it_is_fms_bit_for_bit():
    module, x = attention(RotaryEmbedding(64, max_seq_len=128)), torch.randn(2, 50, 256)
    positions = torch.stack([torch.arange(50), torch.randperm(128)[:50]])
    with torch.inference_mode():
        before = module(x, position_ids=positions, attn_name="sdpa_causal")
        fuse_rotary(module)
        assert torch.equal(module(x, position_ids=positions, attn_name="sdpa_causal"), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("partial_rope", [1.0, 0.5])
def test_on_a_gpu_it_is_fms_up_to_rounding(dtype, partial_rope):
    rotary = RotaryEmbedding(128, max_seq_len=4096, partial_rope=partial_rope)
    q, k = (torch.randn(2, 777, heads, 128, device="cuda", dtype=dtype) for heads in (4, 2))
    positions = torch.stack([torch.arange(777), torch.randperm(4096)[:777]]).cuda()
    expected = rotary.adjusted_qk(q, k, positions)
    turned = FusedRotaryEmbedding(rotary).adjusted_qk(q, k, positions)
    for mine, theirs in zip(turned, expected, strict=True):
        error = (mine.double() - theirs.double()).abs().max()
        assert error <= 2 * torch.finfo(dtype).eps * theirs.abs().max()
