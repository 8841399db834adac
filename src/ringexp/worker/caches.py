"""What a rank computes once and keeps for later jobs: the workload, choices of kernels, expected outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from ringexp.calibration.kernel_choice import BlockSize, fastest, local_length, times_ms
from ringexp.choices import AUTO
from ringexp.config import ModelConfig
from ringexp.kernels import Kernel, candidates, get_kernel
from ringexp.models.registry import build
from ringexp.models.workload import Workload
from ringexp.tracking.environment import code_identity
from ringexp.tracking.references import KernelTimes, ReferenceStore
from ringexp.worker.communicator import Communicator
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.rank_set import RankSet
from ringexp.worker.throttle_state import ThrottleState


class WorkloadCache:
    """The workload of the latest model: building a large one takes seconds."""

    def __init__(self, device: torch.device, progress: ProgressWriter) -> None:
        self._device, self._progress = device, progress
        self._cached: tuple[ModelConfig, int, int, Workload] | None = None

    def get(self, model: ModelConfig, seed: int, longest: int) -> Workload:
        """Return the workload of a model, built for at least `longest` tokens."""
        if self._cached and self._cached[:2] == (model, seed) and self._cached[2] >= longest:
            return self._cached[3]
        self._cached = None  # free the old one first
        self._progress.stage(f"building {model.name}")
        workload = build(model, longest, self._device, seed)
        self._cached = model, seed, longest, workload
        return workload


class KernelCache:
    """The kernels that kernel=auto stands for: the fastest one for each shape of blocks."""

    def __init__(
        self,
        ranks: RankSet,
        device: torch.device,
        communicator: Communicator,
        throttle: ThrottleState,
        progress: ProgressWriter,
    ) -> None:
        self._ranks, self._device, self._progress = ranks, device, progress
        self._communicator, self._throttle = communicator, throttle
        self._chosen: dict[BlockSize, str] = {}

    def get(self, name: str, shape: BlockSize, store: ReferenceStore) -> Kernel:
        """Return a kernel by its name; for `auto` the fastest here, measured once and stored."""
        names = candidates(self._device, shape.dtype, shape.head_dim)
        if name == AUTO and len(names) > 1:
            name = self._fastest(shape, names, store)
        return get_kernel(name, self._device, shape.dtype, shape.head_dim)

    def _fastest(self, shape: BlockSize, names: list[str], store: ReferenceStore) -> str:
        if shape in self._chosen:
            return self._chosen[shape]
        facts = {
            "machine": self._ranks.machine,
            "code": code_identity(),
            "ranks_per_device": self._ranks.ranks_per_device,
            "percentages": self._throttle.percentages,
            "throttle": self._ranks.throttle,
            "kernels": names,
            "shape": {**asdict(shape), "dtype": str(shape.dtype).removeprefix("torch.")},
        }
        choice = self._communicator.from_rank_zero(lambda: store.get_kernel(facts))
        if choice is None or choice.kernel not in names:
            self._progress.stage(f"choosing a kernel: {', '.join(names)}")
            kernels = [get_kernel(name, self._device, shape.dtype, shape.head_dim) for name in names]
            self._communicator.barrier()
            times = self._communicator.gather(times_ms(kernels, shape, self._device))
            kernel, medians = fastest(times)
            choice = KernelTimes(kernel, medians)
            if self._communicator.rank == 0:
                store.put("kernel", facts, asdict(choice))
        self._chosen[shape] = choice.kernel
        return choice.kernel


def block_shape(workload: Workload, batch_size: int, seq_len: int, world_size: int) -> BlockSize:
    """Return the shape of blocks by which a kernel is chosen for a workload."""
    return BlockSize(
        batch_size,
        workload.shape.num_heads,
        workload.shape.num_kv_heads,
        workload.shape.head_dim,
        workload.dtype,
        local_length(seq_len, world_size),
    )


class ExpectedOutputs:
    """What one process computes for the latest prompt."""

    def __init__(self) -> None:
        self._cached: tuple[object, tuple[torch.Tensor, torch.Tensor]] | None = None

    def get(
        self, key: object, workload: Workload, parts: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output in float32, and in the workload's own precision.

        Args:
            key: what decides model and prompt; equal keys share one computation.
            workload: what computes the output.
            parts: the whole prompt, without padding.
        """

        def alone(dtype: torch.dtype) -> torch.Tensor:
            outputs = [workload.reference(x, dtype) for x in parts]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        if self._cached is None or self._cached[0] != key:
            self._cached = None  # free the old ones first
            exact = alone(torch.float32)
            same = workload.dtype == torch.float32
            self._cached = key, (exact, exact if same else alone(workload.dtype))
        return self._cached[1]
