"""What a rank process keeps between its jobs: group, throttle, workload, calibration, references."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ringexp.calibration.kernel_choice import BlockShape, fastest, local_length, times_ms
from ringexp.calibration.table import SpeedRow
from ringexp.config import Config
from ringexp.errors import PeerFailed, UserError
from ringexp.hetero.profiles import beside
from ringexp.hetero.throttle import AppliedThrottle
from ringexp.kernels import Kernel, candidates, get_kernel
from ringexp.machine import cpu_name
from ringexp.models.checkpoints.check import CheckpointCheck
from ringexp.models.registry import model_of
from ringexp.models.workload import Workload
from ringexp.planning import MemoryNeed
from ringexp.planning.memory import GIB
from ringexp.ring.clock import Clock, make_clock
from ringexp.ring.cuda_driver import device_id
from ringexp.ring.ipc import IpcTransport
from ringexp.ring.iteration import Iteration
from ringexp.ring.loop import RingContext
from ringexp.ring.messages import Messages
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.ring.transport import Transport
from ringexp.tracking.environment import code_identity
from ringexp.tracking.metrics import Accuracy, References
from ringexp.tracking.references import ReferenceStore
from ringexp.worker.calibrator import Calibrator, lengths_of
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.rank_set import Job, RankSet

T = TypeVar("T")

FRAGMENTED = 0.05
"""Part of the free CUDA memory that the allocator is taken to lose in gaps."""


@dataclass
class Session:
    """One rank of a rank set. control: a gloo group for messages and host barriers. key: the run's secret."""

    ranks: RankSet
    rank: int
    device: torch.device
    throttle: AppliedThrottle
    transport: Transport
    control: dist.ProcessGroup
    store: dist.Store
    progress: ProgressWriter
    key: bytes = b""

    def __post_init__(self) -> None:
        kinds = (IterationTiming, HopTiming, SpeedRow, Accuracy, References, CheckpointCheck)
        self._messages = Messages(self.control, kinds, self.key, "session")
        self._workload: tuple[Any, Workload] | None = None
        self.calibrator = Calibrator(self)
        self.percentages = self.ranks.percentages
        """Of all ranks now; drift changes them."""
        self._kernels: dict[BlockShape, str] = {}  # chosen for kernel=auto
        self._expected: tuple[Any, tuple[torch.Tensor, torch.Tensor]] | None = None
        self.job: Job | None = None
        """The one that is being done."""

    @property
    def world_size(self) -> int:
        return self.ranks.world_size

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        return self._messages.all_gather(value)

    def barrier(self) -> None:
        dist.barrier(self.control)

    def warn_of_mended_cublas(self) -> None:
        """Say once which ranks' cuBLAS is limited, since that slows their linear layers."""
        for rank, sms in enumerate(self.gather(self.throttle.cublas_sms)):
            if sms is not None:
                self.progress.warn(f"rank {rank}: cuBLAS is wrong under MPS here and was held to {sms} SMs")

    def hardware(self) -> str:
        """The device of this rank, as calibration rows name it: by its kind, or as itself."""
        itself = self.throttle.name == "measured"
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            return f"{properties.name} {properties.uuid}" if itself else properties.name
        kind = f"{cpu_name()} x{torch.get_num_threads()}"
        return f"{kind} {platform.node()} rank {self.rank}" if itself else kind

    @cached_property
    def _devices(self) -> list[str]:
        """The device of each rank; CPU ranks have cores of their own."""
        on_gpu = self.device.type == "cuda"
        return self.gather(device_id(self.device) if on_gpu else f"cores of rank {self.rank}")

    @property
    def beside(self) -> str:
        """As calibration rows have it. All ranks ask together."""
        return beside(self.percentages, self._devices, self.rank)

    def start_job(self, job: Job) -> None:
        """Slow the ranks as a job asks; all ranks call it."""
        self.job = job
        self.set_percentages([float(value) for value in job.config.hetero.percentages])
        emulated = job.throttle == "cpu_pacing"
        self.throttle = replace(self.throttle, name=job.throttle, emulated=emulated)

    def set_percentages(self, percentages: list[float]) -> bool:
        """Slow the ranks to these percentages from here on, each its own; returns whether that changes any.

        All ranks call it with the same ones. On CUDA another stream is current then, to capture graphs on.
        """
        if percentages == self.percentages:
            return False
        self.synchronize()
        self.throttle = self.throttle.changed(percentages[self.rank])
        self.percentages = percentages
        return True

    def clock(self, workload: Workload | None = None) -> Clock:
        """A clock for one iteration of a workload, any one unless given."""
        only_attention = workload is not None and workload.shape.only_attention
        return make_clock(self.device, self.throttle.pacer, only_attention)

    def iteration(self, config: Config, work: Callable[[], torch.Tensor], ring: RingContext) -> Iteration:
        """`work` as it is run and measured: as a CUDA graph if the config says so."""
        iteration = Iteration(work, ring)
        if self.captures(config, ring.transport):
            iteration.capture()
        return iteration

    def captures(self, config: Config, transport: Transport | None = None) -> bool:
        """Whether iterations are to be CUDA graphs, and over a transport can be."""
        wanted = not model_of(config.model).generates_text if config.cuda_graph is None else config.cuda_graph
        return wanted and self.device.type == "cuda" and (transport is None or transport.capturable)

    def workload(self, config: Config) -> Workload:
        """The workload of a config; kept, since making it anew costs seconds for a large model."""
        longest = max(config.seq_len + config.decode_tokens, *lengths_of(config))
        key = (config.model, config.seed)
        if self._workload is None or self._workload[0][:2] != key or self._workload[0][2] < longest:
            self._workload = None  # free the old one first
            self.progress.stage(f"building {config.model.name}")
            workload = model_of(config.model).build(longest, self.device, config.seed)
            self._workload = ((*key, longest), workload)
        return self._workload[1]

    def kernel(self, config: Config, workload: Workload) -> Kernel:
        """The kernel of a config; for kernel=auto the fastest here, measured once and remembered."""
        name = config.kernel.name
        names = candidates(self.device, workload.dtype, workload.shape.head_dim)
        if name == "auto" and len(names) > 1:
            name = self._fastest_kernel(config, workload, names)
        return get_kernel(name, self.device, workload.dtype, workload.shape.head_dim)

    def _fastest_kernel(self, config: Config, workload: Workload, names: list[str]) -> str:
        shape = BlockShape(
            config.model.batch_size,
            workload.shape.num_heads,
            workload.shape.num_kv_heads,
            workload.shape.head_dim,
            workload.dtype,
            local_length(config.seq_len, self.world_size),
        )
        if shape in self._kernels:
            return self._kernels[shape]
        facts = {
            "machine": self.ranks.machine,
            "code": code_identity(),
            "ranks_per_device": self.ranks.ranks_per_device,
            "percentages": self.percentages,
            "throttle": self.ranks.throttle,
            "kernels": names,
            "shape": {**asdict(shape), "dtype": config.model.dtype},
        }
        store = ReferenceStore(config.references_dir, self.progress.warn)
        known = self.from_rank_zero(lambda: store.get("kernel", facts))
        if known is None or known["kernel"] not in names:
            self.progress.stage(f"choosing a kernel: {', '.join(names)}")
            kernels = [get_kernel(each, self.device, shape.dtype, shape.head_dim) for each in names]
            self.barrier()
            chosen, times = fastest(self.gather(times_ms(kernels, shape, self.device)))
            known = {"kernel": chosen, "times_ms": times}
            if self.rank == 0:
                store.put("kernel", facts, known)
        self._kernels[shape] = known["kernel"]
        return known["kernel"]

    def references(self) -> References:
        """Return the known references that the job's run is compared with. All ranks call this together."""
        job = self.job
        if job is None:
            return References()
        store = ReferenceStore(job.config.references_dir, self.progress.warn)
        return self.from_rank_zero(lambda: store.collect(job.references, job.invocation))

    def missing_references(self) -> list[str]:
        """Return the kinds of references that should be known and are not. All ranks call this together."""
        job = self.job
        if job is None:
            return []
        store = ReferenceStore(job.config.references_dir, self.progress.warn)
        wanted = {
            kind: facts
            for kind, facts in job.references.items()
            if kind != "even" or job.config.partitioner.name != "even"  # that one is the run itself
        }
        return self.from_rank_zero(lambda: store.missing(wanted, job.invocation))

    def from_rank_zero(self, value: Callable[[], T]) -> T:
        """Return `value()` of rank 0 on every rank.

        If it raises there, every rank raises: the others a UserError like that of rank 0, or PeerFailed.
        """
        if self.rank:
            answer, kind, message = self._messages.broadcast(None)
            if kind:
                raise (
                    UserError(message)
                    if kind == UserError.__name__
                    else PeerFailed(f"rank 0 failed: {kind}: {message}")
                )
            return answer
        try:
            answer = value()
        except Exception as error:  # the other ranks wait for an answer
            self._messages.broadcast((None, type(error).__name__, str(error)))
            raise
        self._messages.broadcast((answer, "", ""))
        return answer

    def expected(
        self, config: Config, workload: Workload, parts: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output of one process in float32, and in the workload's own dtype; kept for the next job.

        parts: the whole prompt, without padding.
        """
        key = (config.model, config.seq_len, config.seed, config.prompt_file, config.prompt_text)
        key += (config.prompt_lines, config.prompt_lengths)

        def alone(dtype: torch.dtype) -> torch.Tensor:
            outputs = [workload.reference(x, dtype) for x in parts]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        if self._expected is None or self._expected[0] != key:
            self._expected = None  # free the old ones first
            exact = alone(torch.float32)
            same = workload.dtype == torch.float32
            self._expected = (key, (exact, exact if same else alone(workload.dtype)))
        return self._expected[1]

    def room(self, config: Config, workload: Workload, seq_len: int) -> list[int | None]:
        """The most tokens of a prompt that each rank's memory holds; None: any number."""
        limit, need = self.memory_limit_bytes(config), self.memory_need(config, workload)
        return self.gather(None if limit is None else need.max_tokens(limit, seq_len))

    def memory_need(self, config: Config, workload: Workload) -> MemoryNeed:
        """What the run needs of a rank's memory: with its transport, and the cache for decoding or chunks."""
        need, chunks = workload.memory, config.model.num_chunks(config.seq_len)
        if config.decode_tokens or chunks > 1:
            cache = workload.shape.layers * need.kv_token
            # The ring sends all keys and values of a layer; all else is there for one chunk at a time.
            activations = need.kv_token + -(-(need.own_token - need.kv_token) // chunks)
            need = replace(need, own_token=cache + activations)
        # Slots are of the longest shard, which others may have. On one GPU theirs are in their outboxes only.
        if isinstance(self.transport, IpcTransport) and self.transport.any_far:
            need = replace(need, kv_token=2 * need.kv_token)
        return need

    @contextmanager
    def limited_memory(self, config: Config) -> Iterator[None]:
        """CUDA gives this rank no more than `memory_limit_gib`, if that is set."""
        limit = self.memory_limit_bytes(config)
        if self.device.type == "cpu" or config.memory_limit_gib is None or limit is None:
            yield
            return
        whole = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def memory_limits(self, config: Config) -> list[float]:
        """Bytes of each rank; none where there is no limit."""
        limits = self.gather(self.memory_limit_bytes(config))
        return [limit for limit in limits if limit is not None]

    def synchronize(self) -> None:
        """Wait until this rank's device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory_limit_bytes(self, config: Config) -> float | None:
        """`memory_limit_gib` of this rank; without one its part of what CUDA has free or holds for it."""
        limit = config.memory_limit_gib
        if limit is not None:
            return GIB * (limit[self.rank] if isinstance(limit, list) else limit)
        if self.device.type == "cpu":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        mine = free / self.ranks.ranks_per_device + torch.cuda.memory_reserved(self.device)
        return mine * (1 - FRAGMENTED)

    def reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_bytes(self) -> int:
        """Peak of the CUDA allocator since the reset; on CPU the peak resident size of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def close(self) -> None:
        self.transport.close()
        with suppress(Exception):
            dist.destroy_process_group()
