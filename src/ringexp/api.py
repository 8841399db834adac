"""The public functions for other people's code: attention over a prompt that ranks of a group share.

    speeds = ringexp.measure_speeds(seq_len, num_heads=32, num_kv_heads=8, head_dim=128, dtype=torch.bfloat16)
    plan = ringexp.plan(speeds, seq_len)
    out = ringexp.ring_attention(q, k, v, plan)     # every rank gives its part of q, k and v

All ranks of the group make the same calls in the same order. `docs/api.md` has the contracts.
"""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist

from ringexp.calibration.kernel_choice import BlockSize
from ringexp.calibration.measure import StoppingRule, measure_speed
from ringexp.errors import UserError
from ringexp.hetero.pacing import Pacer
from ringexp.kernels import get_kernel
from ringexp.planning import Mask, Plan
from ringexp.planning.planner import plan as plan_of
from ringexp.ring import attention
from ringexp.ring.clock import NoClock, make_clock
from ringexp.ring.context import RingContext
from ringexp.ring.eager import eager
from ringexp.ring.groups import current, transport_of
from ringexp.ring.iteration import Iteration
from ringexp.ring.loopback import LoopbackTransport
from ringexp.ring.ring_group import RingGroup, ring_group_of

_kernel = functools.cache(get_kernel)  # it looks for packages on disk, which takes longer than a short block


@eager
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    group: dist.ProcessGroup | None = None,
    *,
    softmax_scale: float | None = None,
    kernel: str = "auto",
    transport: str = "auto",
) -> torch.Tensor:
    """Compute exact attention of this rank's queries over the keys and values of all ranks of the group.

    All ranks of the group call it; a rank without tokens gives empty tensors and gets an empty one. Forward
    only.

    Args:
        q: queries [B, Lq, H, D] at the positions that the plan gives this rank.
        k: keys [B, Lkv, Hkv, D], of q's dtype and device; H is a multiple of Hkv and heads are not expanded.
        v: values, as the keys.
        plan: who holds which positions, equal on all ranks.
        group: the ranks; None is the default group.
        softmax_scale: multiplies the scores; None is 1/sqrt(D).
        kernel: a name of `ringexp.choices.KERNELS`; auto is the kernel that is expected to be the fastest.
        transport: a name of `ringexp.choices.TRANSPORTS`; auto is what the group's backend can do.

    Returns:
        The output [B, Lq, H, D], contiguous.

    Raises:
        UserError: for tensors that do not fit the plan or need a gradient.
    """
    with ring_group_of(group) as ring_group:
        ring_group.check_size(plan.world_size)
        _check_tensors(q, k, v, plan, ring_group.rank)
        if softmax_scale is not None and not softmax_scale > 0:
            raise UserError(f"softmax_scale={softmax_scale} must be above 0, or None for 1/sqrt(head_dim)")
        return _attend(q, k, v, plan, group, ring_group.rank, softmax_scale, kernel, transport)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    group: dist.ProcessGroup | None,
    rank: int,
    softmax_scale: float | None,
    kernel: str,
    transport: str,
) -> torch.Tensor:
    """Compute `ring_attention` of tensors that have been checked against the plan."""
    chosen = _kernel(kernel, q.device, q.dtype, q.shape[3])
    with current(q.device):
        carrier = transport_of(group, q.device, transport)
        batch, _, kv_heads, head_dim = k.shape
        carrier.memory.reserve(2 * batch * max(plan.kv_tokens) * kv_heads * head_dim * k.element_size())
        if rank not in plan.members:
            return q.new_empty(q.shape)
        ring = RingContext(plan, rank, carrier, chosen, NoClock())
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
        out = attention.ring_attention(q, k, v, ring, softmax_scale)
        carrier.transfers.take()  # nobody reads the times of hops
    return out


def _check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, rank: int) -> None:
    """Raise UserError for tensors that `ring_attention` cannot compute with."""
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if plan.chunks:
        raise UserError("the plan is in chunks; call with each of plan.chunks, and keys and values up to it")
    if not q.dim() == k.dim() == v.dim() == 4 or k.shape != v.shape:
        raise UserError(f"q must be [B, Lq, H, D], k and v both [B, Lkv, Hkv, D], got {shapes}")
    (batch, q_len, num_heads, head_dim), (kv_batch, kv_len, num_kv_heads, kv_dim) = q.shape, k.shape
    if (batch, head_dim) != (kv_batch, kv_dim) or num_heads % num_kv_heads:
        raise UserError(f"q, k and v need one B and D, and H a multiple of Hkv, got {shapes}")
    planned = plan.tokens[rank], (plan.kv_tokens if plan.aligned else plan.tokens)[rank]
    if (q_len, kv_len) != planned:
        raise UserError(
            f"rank {rank} holds {planned[0]} queries and {planned[1]} keys of the plan, got {shapes}; "
            "cut tensors with ringexp.shard"
        )
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        types = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise UserError(f"q, k and v need one dtype and one device, got {types}")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise UserError("ring attention has no backward; call it under torch.inference_mode() or no_grad()")
    if q.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UserError("ring_attention cannot be captured in a CUDA graph; call it eagerly")


@eager
def measure_speeds(
    seq_len: int,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    group: dist.ProcessGroup | None = None,
    batch: int = 1,
    causal: bool = True,
    kernel: str = "auto",
    max_seconds: float = 1.0,
) -> list[float]:
    """Measure the speed of attention on each rank of the group; all ranks call it together.

    All ranks compute at the same time, each its part of an even ring on random numbers, and nothing is
    transferred. So ranks that share a device are measured as they will run.

    Args:
        seq_len: tokens of the prompt.
        num_heads: query heads.
        num_kv_heads: key/value heads; None is num_heads.
        head_dim: elements per head.
        dtype: precision of queries, keys and values.
        device: None is the current CUDA device, or the CPU where there is none.
        group: the ranks; None is the default group.
        batch: prompts at a time.
        causal: whether a query sees only the keys up to its own position.
        kernel: as in `ring_attention`.
        max_seconds: about the longest time per rank; the slowest rank may need longer.

    Returns:
        TFLOP/s per rank, the same list on all ranks, as `plan` takes it.
    """
    with ring_group_of(group) as ring_group:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        even = plan_of([1.0] * ring_group.size, seq_len, mask=Mask.of(causal))
        shape = BlockSize(
            batch, num_heads, num_kv_heads or num_heads, head_dim, dtype, even.tokens[ring_group.rank]
        )
        return _measured(shape, even, device, ring_group, kernel, max_seconds)


def _measured(
    shape: BlockSize,
    even: Plan,
    device: torch.device,
    ring_group: RingGroup,
    kernel: str,
    max_seconds: float,
) -> list[float]:
    """Measure as `measure_speeds` does. shape: of this rank's part of the even plan."""
    rank, world_size = ring_group.rank, ring_group.size
    q, k, v = (x.transpose(1, 2) for x in shape.inputs(device))
    _check_tensors(q, k, v, even, rank)
    chosen = _kernel(kernel, q.device, shape.dtype, shape.head_dim)
    ring = RingContext(even, rank, LoopbackTransport(rank), chosen, make_clock(device, Pacer(100)))
    piece = Iteration(lambda: attention.ring_attention(q, k, v, ring), ring)
    place = ring_group.place(device)
    meeting = _Meeting(place, ring_group)
    with torch.no_grad(), current(q.device):
        sample = measure_speed(
            lambda: piece.run()[1].busy_ms,
            flops=4.0 * shape.batch * shape.num_heads * shape.head_dim * even.pairs(rank),
            rule=StoppingRule(
                min_samples=5, min_seconds=max_seconds / 10, max_seconds=max_seconds, precision=0.01
            ),
            start_together=meeting.wait,
            finish_together=meeting.poll,
        )
    speeds = torch.zeros(world_size, dtype=torch.float64, device=place)
    speeds[rank] = sample.speed_tflops
    ring_group.all_reduce(speeds)
    return speeds.tolist()


class _Meeting:
    """A point where the ranks of a group wait for each other, or ask whether all have arrived."""

    def __init__(self, device: torch.device, ring_group: RingGroup) -> None:
        self._nothing = torch.zeros(1, device=device)
        self._ring_group, self._alone = ring_group, ring_group.size == 1
        self._polled: dist.Work | None = None

    def wait(self) -> None:
        if not self._alone:
            self._ring_group.all_reduce(self._nothing)
            self._nothing.item()  # on CUDA the line above does not wait

    def poll(self) -> bool:
        """Tell whether all ranks have asked at least once."""
        if self._alone:
            return True
        if self._polled is None:
            self._polled = self._ring_group.begin_all_reduce(self._nothing)
        return self._polled.is_completed()
