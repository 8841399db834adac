"""The properties that kernels, transports, throttles, partitioners and layouts state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ringexp.choices.registry import Choice

ALL_DEVICES = ("cpu", "cuda")
HALF = ("float16", "bfloat16")
FAST = (*HALF, "float32")


@dataclass(frozen=True, kw_only=True)
class KernelSpec(Choice):
    """A provider that computes one block of attention.

    Attributes:
        devices: device types it runs on.
        dtypes: precisions it takes, by torch's names.
        auto_rank: its place among the kernels that `auto` picks from, the expected fastest first; None if
            `auto` never picks it.
        package: the distribution it needs beyond ringexp's own dependencies; "" for none.
        install: the command that installs that package.
        needs_probe: device types on which only its own code can tell whether it runs.
        fused: whether it can compute several shards in one launch, wait for them and send by itself.
        alternatives: kernels that an error message proposes in its place.
        stored_as: its name in calibration keys; "" for `name`. Another one keeps apart rows that were
            measured when `name` stood for another kernel.
    """

    devices: tuple[str, ...] = ALL_DEVICES
    dtypes: tuple[str, ...] = FAST
    auto_rank: int | None = None
    package: str = ""
    install: str = ""
    needs_probe: tuple[str, ...] = ()
    fused: bool = False
    alternatives: tuple[str, ...] = ("sdpa", "auto")
    stored_as: str = ""

    def why_unsuitable(self, device: str, dtype: str, setting: str = "dtype") -> str | None:
        """Return what it lacks by its own statement, as the end of a sentence "needs ..."; None if nothing.

        Args:
            device: the device type.
            dtype: the precision, by torch's name.
            setting: what the precision is called in the message.
        """
        if device not in self.devices:
            device_words = {"cpu": "the CPU", "cuda": "CUDA"}
            return f"{_either([device_words.get(name, name) for name in self.devices])}, but device={device}"
        if dtype not in self.dtypes:
            return f"{_either(self.dtypes)}, but {setting}={dtype}"
        return None

    def why_not_installed(self) -> str | None:
        """Return the package that it lacks, as the end of a sentence "needs ..."; None if it lacks none."""
        if not self.package:
            return None
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"the package {self.package}" + (f" ({self.install})" if self.install else "")
        return None


def _either(words: Sequence[str]) -> str:
    """Return words as "a, b or c"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True, kw_only=True)
class TransportSpec(Choice):
    """A carrier of shards from rank to rank.

    Attributes:
        devices: device types whose tensors it carries.
        several_machines: whether its ranks may be on several machines.
        one_rank_per_gpu: whether ranks may not share a GPU.
        needs_peer_access: whether the GPUs must be able to access each other's memory.
        capturable: whether a CUDA graph can contain its ring.
        direct: whether a rank gets every shard straight from its owner, rather than from its neighbour.
        backend: (device type, backend) that the process group must have; None if any will do.
        own_connections: whether it can use connections of a ring group in place of the process group's, which
            end with that ring group.
        slots_per_far_shard: copies of a shard in a rank's memory while it comes from another GPU.
        auto_rank: its place among the transports that `auto` tries; None if `auto` never picks it.
    """

    devices: tuple[str, ...] = ALL_DEVICES
    several_machines: bool = True
    one_rank_per_gpu: bool = False
    needs_peer_access: bool = False
    capturable: bool = False
    direct: bool = False
    backend: tuple[str, str] | None = None
    own_connections: bool = False
    slots_per_far_shard: int = 1
    auto_rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class ThrottleSpec(Choice):
    """A mechanism that slows a rank.

    Attributes:
        devices: device types it works on.
        slows: whether it slows anything at all.
        emulated: whether the rank waits, in place of having less hardware.
        changes_in_mid_run: whether the percentage can change in a running process.
        why_fixed: why it cannot change, for messages.
        per_process: on a CPU each rank slows itself alone, so one set of ranks can take any percentages.
        measures_each_device: whether devices of one name are measured one by one, since they may differ.
        shared_on_node: whether all ranks of a machine share one service that the launcher starts.
        makes_control_groups: whether the launcher makes control groups, which SLURM does itself.
        program: the program that has to be on PATH; "" for none.
        install: what to do where that program is missing.
        auto_rank: its place among the throttles that `auto` tries; None if `auto` never picks it.
    """

    devices: tuple[str, ...] = ALL_DEVICES
    slows: bool = True
    emulated: bool = False
    changes_in_mid_run: bool = False
    why_fixed: str = ""
    per_process: bool = False
    measures_each_device: bool = False
    shared_on_node: bool = False
    makes_control_groups: bool = False
    program: str = ""
    install: str = ""
    auto_rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class PartitionerSpec(Choice):
    """A rule that decides how many tokens each rank gets.

    Its implementation is called as weights(source, settings) and returns one positive number per rank, to
    which token counts are proportional. With `makes_plan` it is called as plan(request, source, max_tokens,
    links) and returns the `Plan` itself.

    Attributes:
        needs_percentages: whether it splits by the profile's percentages.
        needs_speeds: whether it splits by measured speeds.
        needs_costs: whether it splits by what work costs each rank, and so evens out what ranks compute.
        needs_curve: whether it fits a curve over lengths, so that more lengths have to be measured.
        makes_plan: whether it makes the plan itself, in place of weights.
        adapts: whether it plans anew between prompts.
        is_baseline: whether speedups are relative to it.
    """

    needs_percentages: bool = False
    needs_speeds: bool = False
    needs_costs: bool = False
    needs_curve: bool = False
    makes_plan: bool = False
    adapts: bool = False
    is_baseline: bool = False

    @property
    def needs_measurements(self) -> bool:
        """Tell whether it plans by measurements of the ranks."""
        return self.needs_speeds or self.needs_costs


@dataclass(frozen=True, kw_only=True)
class LayoutSpec(Choice):
    """A rule that maps token counts to positions.

    Its implementation takes the token count per rank and returns the shard per rank.

    Attributes:
        mirrored: whether a rank's tail piece mirrors its head piece, so that its causal work depends on its
            own token count alone.
    """

    mirrored: bool = False
