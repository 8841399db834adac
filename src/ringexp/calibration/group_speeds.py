"""The speed of attention on each rank of a process group, measured by all ranks at the same time."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ringexp.calibration.kernel_choice import BlockSize
from ringexp.calibration.measure import StoppingRule, measure_speed
from ringexp.hetero.pacing import Pacer
from ringexp.kernels import get_kernel
from ringexp.planning import Mask, Plan
from ringexp.planning.flops import pair_flops
from ringexp.planning.planner import plan as plan_of
from ringexp.ring import attention
from ringexp.ring.clock import make_clock
from ringexp.ring.context import RingContext
from ringexp.ring.eager import eager
from ringexp.ring.groups import current
from ringexp.ring.iteration import Iteration
from ringexp.ring.loopback import LoopbackTransport
from ringexp.ring.ring_group import RingGroup, ring_group_of
from ringexp.ring.tensors import check_tensors


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
        kernel: as in `ringexp.ring_attention`.
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
    check_tensors(q, k, v, even, rank)
    chosen = get_kernel(kernel, q.device, shape.dtype, shape.head_dim)
    ring = RingContext(even, rank, LoopbackTransport(rank), chosen, make_clock(device, Pacer(100)))
    piece = Iteration(lambda: attention.ring_attention(q, k, v, ring), ring)
    place = ring_group.place(device)
    meeting = _Meeting(place, ring_group)
    with torch.no_grad(), current(q.device):
        sample = measure_speed(
            lambda: piece.run()[1].busy_ms,
            flops=pair_flops(shape.num_heads, shape.head_dim, shape.batch) * even.pairs(rank),
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
