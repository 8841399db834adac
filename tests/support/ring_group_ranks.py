"""Ranks of a test pool of which one fails in a call that all of them make."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

import ringexp
from ringexp import api
from ringexp.kernels import Kernel
from support.model_ranks import TINY, ring_model

TOKENS = [20, 9, 13]
FAILING = 1


@torch.inference_mode()
def fail_in(rank: int, name: str, fresh: bool) -> tuple[str, float, str, str]:
    """Let one rank fail in a call, with `fresh` the group's first.

    Returns what this rank hears of it, after how many seconds, what at the next call, and after `close`.
    """
    ringexp.close()
    if not fresh:
        assert heard(lambda: attend(rank)) == "no error"
    call = CALLS[name](rank, rank == FAILING)
    torch.distributed.barrier()
    began = time.perf_counter()
    first = heard(call)
    took_s = time.perf_counter() - began
    after = heard(lambda: attend(rank))
    torch.distributed.barrier()
    ringexp.close()
    closed = heard(lambda: attend(rank))
    return first, took_s, after, closed


@torch.inference_mode()
def refuse_together(rank: int) -> list[str]:
    """Make a call that every rank refuses for a reason of its own, and go on."""
    ringexp.close()
    calls = [lambda: attend(rank), lambda: attend(rank, extra=1 + rank), lambda: attend(rank)]
    return [heard(call) for call in (*calls, *calls)]


@torch.inference_mode()
def refuse_where_one_has_no_tokens(rank: int) -> list[str]:
    """Make a call that ranks 0 and 1 refuse and where rank 2 has no tokens; it is told in the next call."""
    ringexp.close()
    attend(rank)
    plan = ringexp.plan([1, 1, 1], 30, max_tokens=[None, None, 0])
    q = torch.zeros(1, plan.tokens[rank] + (rank < 2), 4, 16)
    told = [heard(lambda: ringexp.ring_attention(q, q, q, plan)), heard(lambda: attend(rank))]
    ringexp.close()
    return [*told, heard(lambda: attend(rank))]


def heard(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def attend(rank: int, extra: int = 0) -> None:
    plan = ringexp.plan(TOKENS, sum(TOKENS), tile=1)
    q = torch.ones(1, plan.tokens[rank] + extra, 4, 16)
    assert torch.equal(ringexp.ring_attention(q, q, q, plan), q)


def _wrong_tensors(rank: int, fails: bool) -> Callable[[], object]:
    return lambda: attend(rank, extra=int(fails))


def _broken_kernel(rank: int, fails: bool) -> Callable[[], object]:
    def block(*_: object) -> Any:
        raise ValueError("no such block")

    def call() -> None:
        with patch.object(api, "_kernel", lambda *_: Kernel("broken", block)):
            attend(rank)

    def in_two_layers() -> None:  # what the failing rank has sent on may be enough for the first
        attend(rank)
        attend(rank)

    return call if fails else in_two_layers


def _unsharding(rank: int, fails: bool) -> Callable[[], object]:
    plan = ringexp.plan(TOKENS, sum(TOKENS))
    return lambda: ringexp.unshard(torch.zeros(1, plan.tokens[rank] + fails), plan)


def _measuring(rank: int, fails: bool) -> Callable[[], object]:
    kernel = "fastest" if fails else "auto"
    how: dict[str, Any] = {"num_heads": 2, "head_dim": 16, "dtype": torch.float32, "max_seconds": 0.1}
    return lambda: ringexp.measure_speeds(96, kernel=kernel, **how)


def _making_a_model(rank: int, fails: bool) -> Callable[[], object]:
    layout = "striped" if fails else "zigzag"
    return lambda: ring_model(rank, "llama", TINY["llama"], TOKENS, layout)


def _forward(rank: int, fails: bool) -> Callable[[], object]:
    model = ring_model(rank, "llama", TINY["llama"], TOKENS, "zigzag")
    return lambda: model(torch.ones(1, sum(TOKENS), dtype=torch.long), last_n_tokens=2 if fails else 1)


def _generation(rank: int, fails: bool) -> Callable[[], object]:
    model = ring_model(rank, "llama", TINY["llama"], TOKENS, "zigzag")
    ids = torch.ones(1, sum(TOKENS), dtype=torch.long)
    return lambda: ringexp.generate(model, ids, max_new_tokens=-1 if fails else 3)


def _next_token(rank: int, fails: bool) -> Callable[[], object]:
    model = ring_model(rank, "llama", TINY["llama"] | {"max_expected_seq_len": 43}, TOKENS, "zigzag")
    _, cache = model(torch.ones(1, sum(TOKENS), dtype=torch.long), use_cache=True)
    cache.length += int(fails)
    return lambda: model.next_token(torch.ones(1, 1, dtype=torch.long), cache)


CALLS = {
    "tensors": _wrong_tensors,
    "kernel": _broken_kernel,
    "unshard": _unsharding,
    "measure_speeds": _measuring,
    "get_model": _making_a_model,
    "forward": _forward,
    "generate": _generation,
    "next_token": _next_token,
}
"""Calls that all ranks make: (rank, whether it fails there) -> the call."""
