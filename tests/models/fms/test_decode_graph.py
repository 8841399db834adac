"""A step that is recorded once and replayed decodes every token: all that differs is in device memory.

What records here is PyTorch's tracer, on the CPU: host values are frozen in it as they are in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fms.models import get_model
from torch.fx.experimental.proxy_tensor import make_fx

from ringexp.kernels import Slots, get_decode_kernel, get_kernel
from ringexp.kernels.decode import DecodeKernel, merge
from ringexp.models.fms import cache as cache_module
from ringexp.models.fms.generation import Decoder
from ringexp.models.inputs import local_inputs
from ringexp.planning import make_plan
from ringexp.ring import iteration
from ringexp.ring.clock import NoClock
from ringexp.ring.context import RingContext
from ringexp.ring.loopback import LoopbackTransport
from support.model_ranks import TINY, VARIANTS, replayed

NEW_TOKENS = 12


class Recorded:
    """A stand-in for a CUDA graph: repeats `work` on its first tensors and overwrites its results."""

    def __init__(self, work) -> None:
        self.output = work()
        self._tensors = [x for x in self.output if isinstance(x, torch.Tensor)]
        self._trace = make_fx(lambda: tuple(x for x in work() if isinstance(x, torch.Tensor)))()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for mine, new in zip(self._tensors, self._trace(), strict=True):
            mine.copy_(new)


def attend_with_mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: Slots, scale: float) -> Any:
    """Like the Triton kernel it has lengths from `slots`' tensors alone."""
    at = torch.arange(k.shape[1])
    seen = (at >= slots.first_slots[:, None]) & (at < slots.stop)
    free = ~seen[:, :, None, None]
    scores = torch.einsum("bhgd,bshd->bhgs", q, k.masked_fill(free, 0.0)) * scale
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    out = torch.einsum("bhgs,bshd->bhgd", scores.softmax(-1), v.masked_fill(free, 0.0))
    return torch.cat((out, scores.logsumexp(-1, keepdim=True)), dim=-1).unsqueeze(0)


@pytest.fixture
def recordings(monkeypatch):
    made = []

    def captured(work):
        made.append(Recorded(work))
        return made[-1], made[-1].output

    monkeypatch.setattr(iteration, "captured", captured)
    return made


@torch.no_grad()
def decode(
    model, starts: tuple[int, ...], kernel: DecodeKernel, reserved: int, reopened: int = NEW_TOKENS
) -> torch.Tensor:
    """reopened: the new token from which on there is another transport."""
    ids = torch.randint(1, 64, (len(starts), 21), generator=torch.Generator().manual_seed(3))
    plan = make_plan(21, [21], starts=starts)
    ring = RingContext(plan, 0, LoopbackTransport(), get_kernel("sdpa", "cpu", torch.float32, 16), NoClock())
    local, decoder = local_inputs(ids, plan, 0), Decoder(model, ring, kernel)
    logits, cache = decoder.prefill(local.x, local.positions, reserved)
    tokens = [decoder.choose(logits)]
    for index in range(NEW_TOKENS):
        if index == reopened:
            decoder = replace(decoder, ring=replace(ring, transport=LoopbackTransport()))
        tokens.append(decoder.step(tokens[-1], cache)[1].clone())
    return torch.cat(tokens, dim=1)


@pytest.mark.parametrize("starts", [(0, 0), (0, 13, 20)], ids=["equal", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_replays_give_the_tokens_of_eager_steps(recordings, architecture, starts):
    torch.manual_seed(0)
    model = get_model(architecture, VARIANTS[architecture], **TINY[architecture]).eval()
    eager = decode(model, starts, get_decode_kernel("cpu", torch.float32, 16), NEW_TOKENS)
    assert not recordings
    static = DecodeKernel(attend_with_mask, merge, replayable=True)
    assert torch.equal(decode(model, starts, static, NEW_TOKENS), eager)
    assert [recording.replays for recording in recordings] == [NEW_TOKENS - 1]


def test_a_cache_that_grows_is_recorded_anew(recordings, monkeypatch):
    monkeypatch.setattr(cache_module, "GROWTH", 5)
    torch.manual_seed(0)
    model = get_model("llama", "micro", **TINY["llama"]).eval()
    static = DecodeKernel(attend_with_mask, merge, replayable=True)
    tokens = decode(model, (0, 4), static, 2)
    assert [recording.replays for recording in recordings] == [2, 4, 3]
    assert torch.equal(tokens, decode(model, (0, 4), static, NEW_TOKENS))


def test_with_another_transport_it_is_recorded_anew(recordings):
    torch.manual_seed(0)
    model = get_model("llama", "micro", **TINY["llama"]).eval()
    static = DecodeKernel(attend_with_mask, merge, replayable=True)
    tokens = decode(model, (0, 4), static, NEW_TOKENS, reopened=5)
    assert [recording.replays for recording in recordings] == [4, 6]
    assert torch.equal(tokens, decode(model, (0, 4), static, NEW_TOKENS))


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[63, 63], [5, 63, 41]], ids=["equal", "padded"])
@pytest.mark.parametrize("block_lens", [[63], [40, 23]], ids=["one rank", "two over ipc"])
@pytest.mark.parametrize(
    ("architecture", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("mixtral", "float32")]
)
def test_a_graph_gives_the_tokens_of_eager_steps(pools, architecture, dtype, block_lens, lengths):
    arguments = (architecture, block_lens, lengths, NEW_TOKENS, dtype)
    for tokens, replays in pools[len(block_lens)].run(replayed, *arguments):
        assert replays == {"graph": NEW_TOKENS - 2, "eager": 0}  # the first is prefill's, the second captured
        assert torch.equal(tokens["graph"], tokens["eager"])
        if dtype == "float32":
            assert torch.equal(tokens["graph"], tokens["alone"])
