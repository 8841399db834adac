"""Calls of the public functions by the ranks of a test pool; importable, so that they travel by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

import ringexp
from ringexp.calibration import group_speeds
from ringexp.hetero.pacing import Pacer
from ringexp.planning import make_plan
from support.ring_ranks import Case

_groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}


def group_of(ranks: Sequence[int]) -> dist.ProcessGroup | None:
    """A group of these of the pool's ranks, made once; all processes ask."""
    if tuple(ranks) not in _groups:
        _groups[tuple(ranks)] = dist.new_group(list(ranks))  # type: ignore[assignment]
    return _groups[tuple(ranks)]


def attend(case: Case, rank: int, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The whole output [B, S, H, D] of a case, by the group's rank `rank` of its parts."""
    plan = case.plan()
    q, k, v = (ringexp.shard(x, plan, rank) for x in case.qkv())
    out = ringexp.ring_attention(q, k, v, plan, group, kernel=case.kernel)
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    assert out.is_contiguous()
    return ringexp.unshard(out, plan, group)


@torch.inference_mode()
def attend_all(rank: int, cases: list[Case]) -> list[torch.Tensor]:
    """Several cases in one group, one after another."""
    return [attend(case, rank) for case in cases]


@torch.inference_mode()
def attend_in_groups(rank: int, cases: dict[tuple[int, ...], Case], repeats: int) -> list[torch.Tensor]:
    """Each case on its own ranks, in turn, a few times; the outputs of those that this rank was in."""
    groups = {ranks: group_of(ranks) for ranks in cases}
    mine = [ranks for ranks in cases if rank in ranks]
    for _ in range(repeats):
        outputs = [attend(cases[ranks], ranks.index(rank), groups[ranks]) for ranks in mine]
    return outputs


@torch.inference_mode()
def attend_as_stranger(rank: int, ranks: tuple[int, ...], case: Case) -> str:
    """Return the error of a process that is not in the group it calls with; members compute as ever."""
    group = group_of(ranks)
    place = ranks.index(rank) if rank in ranks else 0
    return error_of(lambda: attend(case, place, group))


def error_of(call: Callable[[], object]) -> str:
    """The UserError of a call, or `no error`."""
    try:
        call()
    except ringexp.UserError as error:
        return str(error)
    return "no error"


def refused(rank: int) -> dict[str, str]:
    """Return the errors of `ring_attention` for tensors and plans that do not fit, by name."""
    plan = ringexp.plan([2, 1], 30)
    length = plan.tokens[rank]

    def tensors(q=(1, length, 4, 16), kv=(1, length, 2, 16), dtype=torch.float32):
        return torch.zeros(q), torch.zeros(kv, dtype=dtype), torch.zeros(kv, dtype=dtype)

    def ask(*given: torch.Tensor, with_plan: ringexp.Plan = plan, **how: object) -> str:
        return error_of(lambda: ringexp.ring_attention(*given, with_plan, **how))  # type: ignore[arg-type]

    wanted = [x.requires_grad_() for x in tensors()]
    found = {
        "length": ask(*tensors(q=(1, length + 1, 4, 16))),
        "keys": ask(*tensors(kv=(1, length - 1, 2, 16))),
        "heads": ask(*tensors(kv=(1, length, 3, 16))),
        "head_dim": ask(*tensors(kv=(1, length, 2, 8))),
        "batch": ask(*tensors(q=(2, length, 4, 16))),
        "dimensions": ask(*tensors(q=(length, 4, 16))),
        "dtype": ask(*tensors(dtype=torch.bfloat16)),
        "world": ask(*tensors(), with_plan=ringexp.plan([1, 1, 1], 30)),
        "chunks": ask(*tensors(), with_plan=make_plan(30, [20, 10], chunks=2)),
        "scale": ask(*tensors(), softmax_scale=0.0),
        "kernel": ask(*tensors(), kernel="fastest"),
        "transport": ask(*tensors(), transport="mpi"),
        "device": ask(*tensors(), transport="nccl"),
        "gradient": ask(*wanted),
        "shard": error_of(lambda: ringexp.shard(torch.zeros(1, 31), plan, rank)),
        "unshard": error_of(lambda: ringexp.unshard(torch.zeros(1, length + 1), plan)),
        "unshard_dim": error_of(lambda: ringexp.unshard(torch.zeros(length), plan)),
    }
    with torch.no_grad():
        found["no gradient"] = ask(*wanted)
    return found


@torch.inference_mode()
def close_and_go_on(rank: int, case: Case) -> tuple[list[int], list[torch.Tensor]]:
    """Count the threads that forward shards before a ring, with it and after its end, twice; outputs too."""

    def forwarders() -> int:
        return sum(thread.name.startswith("ring-forwarder") for thread in threading.enumerate())

    ranks = tuple(range(dist.get_world_size()))
    group = group_of(ranks)
    threads, outputs = [forwarders()], []
    for _ in range(2):
        outputs += [attend(case, rank, group) for _ in range(2)]
        threads.append(forwarders())
        ringexp.close(group)
        threads.append(forwarders())
    return threads, outputs


@torch.inference_mode()
def measure(rank: int, percentages: list[float]) -> list[float]:
    """The ranks' measured speeds, each rank slowed to its percentage."""
    unslowed = group_speeds.Pacer
    group_speeds.Pacer = lambda _: Pacer(percentages[rank])  # type: ignore[misc,assignment]
    try:
        return ringexp.measure_speeds(
            256, num_heads=4, num_kv_heads=2, head_dim=32, dtype=torch.float32, max_seconds=0.3
        )
    finally:
        group_speeds.Pacer = unslowed  # type: ignore[misc]
