"""A run with every `auto` decided: made once in the launcher, sent to the ranks with the job."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ringexp.choices import AUTO, PARTITIONERS, TRANSPORTS, TransportSpec
from ringexp.choices.specs import PartitionerSpec
from ringexp.config import DEFAULT_TILE, Config, DriftConfig
from ringexp.configure.prompts import starts_of
from ringexp.configure.read_back import config_from_dict
from ringexp.hetero.throttle import resolve_throttle
from ringexp.machine import default_device, gpus_reach_each_other
from ringexp.models.registry import model_of
from ringexp.planning.masks import Mask
from ringexp.planning.request import PlanRequest


@dataclass(frozen=True)
class ResolvedRun:
    """One run with everything decided that ranks need.

    Attributes:
        settings: the settings as the user gave them, for records and for the parts that need no decision.
        device: cpu or cuda.
        throttle: the name of a throttle, never auto.
        transport: the name of a transport, never auto.
        tile: tokens are given out in whole tiles of this size.
        mask: which keys a query may see.
        chunks: the number of chunks in which prefill is done.
        starts: per prompt of a padded batch the first position that is no padding; () if none is padded.
        memory_limits_gib: per rank the limit, or None for what CUDA has free and for no limit on the CPU.
        cuda_graph: whether prompts are to be replayed as CUDA graphs where the transport allows it.
    """

    settings: Config
    device: str
    throttle: str
    transport: str
    tile: int
    mask: Mask
    chunks: int
    starts: tuple[int, ...]
    memory_limits_gib: tuple[float | None, ...]
    cuda_graph: bool

    @property
    def percentages(self) -> list[float]:
        """The profile: the percentage of full speed per rank."""
        return [float(value) for value in self.settings.hetero.percentages]

    @property
    def drift(self) -> DriftConfig:
        return self.settings.hetero.drift

    @property
    def world_size(self) -> int:
        return self.settings.world_size

    @property
    def seq_len(self) -> int:
        return self.settings.seq_len

    @property
    def partitioner(self) -> PartitionerSpec:
        return PARTITIONERS[self.settings.partitioner.name]

    @property
    def plan_request(self) -> PlanRequest:
        """The request by which the plan is made."""
        settings, partitioner = self.settings, self.settings.partitioner
        return PlanRequest(
            seq_len=self.seq_len,
            tile=self.tile,
            layout=settings.layout.name,
            mask=self.mask,
            split=settings.split,
            chunks=self.chunks,
            starts=self.starts,
            prefetch_hops=settings.transport.prefetch_hops,
            partitioner=partitioner.name,
            settings=getattr(partitioner, partitioner.name, partitioner.options),
        )

    def to_dict(self) -> dict[str, object]:
        """Return what `from_dict` makes the same run of, as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ResolvedRun:
        """Return the run that `to_dict` was called on."""
        decided = data | {
            "settings": config_from_dict(data["settings"]),
            "mask": Mask(**data["mask"]),
            "starts": tuple(data["starts"]),
            "memory_limits_gib": tuple(data["memory_limits_gib"]),
        }
        return cls(**decided)


def resolve(config: Config, num_gpus: int, num_nodes: int = 1) -> ResolvedRun:
    """Decide everything about a run that its settings leave open.

    Args:
        config: validated settings.
        num_gpus: GPUs of all machines together.
        num_nodes: the number of machines.

    Raises:
        UserError: if no throttle can do what is asked on that device.
    """
    device = device_of(config)
    hetero, limit = config.hetero, config.memory_limit_gib
    model = model_of(config.model)
    wanted = not model.generates_text if config.cuda_graph is None else config.cuda_graph
    return ResolvedRun(
        settings=config,
        device=device,
        throttle=resolve_throttle(hetero.throttle, device, hetero.percentages, bool(hetero.drift)),
        transport=_transport(config, device, num_gpus, num_nodes),
        tile=config.tile or DEFAULT_TILE[device],
        mask=model.mask,
        chunks=config.model.num_chunks(config.seq_len),
        starts=starts_of(config),
        memory_limits_gib=tuple(limit if isinstance(limit, list) else [limit] * config.world_size),
        cuda_graph=wanted and device == "cuda",
    )


def device_of(config: Config) -> str:
    """Return the device type of a run on this machine: cpu or cuda."""
    return default_device() if config.device == AUTO else config.device


def _transport(config: Config, device: str, num_gpus: int, num_nodes: int) -> str:
    """Return the transport by name; for auto the first, in their order, that works between these ranks."""
    if config.transport.name != AUTO:
        return config.transport.name
    separate = config.world_size <= num_gpus

    def works(spec: TransportSpec) -> bool:
        if device not in spec.devices or (num_nodes > 1 and not spec.several_machines):
            return False
        if device == "cpu":
            return True
        if spec.one_rank_per_gpu and not separate:
            return False
        return not (spec.needs_peer_access and separate) or gpus_reach_each_other()

    ranked = [spec for spec in TRANSPORTS if spec.auto_rank is not None]
    return next(spec.name for spec in sorted(ranked, key=lambda spec: spec.auto_rank or 0) if works(spec))
