"""The schema of a run: dataclasses that every file in conf/ is checked against. Pure data.

`Config` is what a user asks for. `ringexp.configure` composes, validates and resolves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGED, SOURCE = Path(__file__).parent / "conf", Path(__file__).parents[2] / "conf"
CONF_DIR = PACKAGED if PACKAGED.is_dir() else SOURCE
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
SPLITS = ("tokens", "kv")
TRACKER_MODES = ("offline", "online", "disabled")
CALIBRATION_MODES = ("auto", "table", "refresh")
DEFAULT_TILE = {"cuda": 256, "cpu": 16}
"""Tokens per tile by device type, where the setting `tile` is null."""


@dataclass
class ModelConfig:
    """The settings of every model: a precision, a batch, and the prompt length that suits it."""

    name: str = "???"
    kind: str = "???"  # attention | fms
    dtype: str = "float32"
    batch_size: int = 1
    default_seq_len: int = 4096

    def num_chunks(self, seq_len: int) -> int:
        """Return the number of chunks in which prefill of a prompt is done."""
        return 1


@dataclass
class AttentionModelConfig(ModelConfig):
    """One FMS attention module: QKV projection, RoPE, ring, output projection; or the ring alone."""

    kind: str = "attention"
    emb_dim: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    causal: bool = True
    projections: bool = True  # false: the ring alone, on random queries, keys and values


@dataclass
class FmsModelConfig(ModelConfig):
    """A whole FMS model, with random weights or those of a Hugging Face folder."""

    kind: str = "fms"
    architecture: str = "llama"
    variant: str = "micro"
    overrides: dict[str, Any] = field(default_factory=dict)  # fields of the FMS model config, e.g. nlayers: 2
    chunk_tokens: int | None = None  # prefill in chunks of about this many tokens, all ranks together
    checkpoint: str | None = None  # a Hugging Face folder; it decides architecture and shape

    def num_chunks(self, seq_len: int) -> int:
        """Return the number of chunks of about `chunk_tokens`; 1 without chunks."""
        return -(-seq_len // self.chunk_tokens) if self.chunk_tokens else 1


@dataclass
class DriftConfig:
    """Percentages that change while a run is under way. It is false if there is no drift."""

    kind: str = "none"  # none | step | ramp | flapping | recovery
    to: list[float] = field(default_factory=list)  # the percentages that ranks drift to, one per rank
    at: int = 10  # the first timed prompt, from 0, that runs at other percentages
    over: int = 10  # prompts of a ramp, at each level of flapping, and until recovery

    def __bool__(self) -> bool:
        return self.kind != "none"


@dataclass
class HeteroConfig:
    """The profile: one percentage of full speed per rank, in rank order. The world size follows from it."""

    percentages: list[float] = field(default_factory=lambda: [100.0, 100.0])
    throttle: str = "auto"
    drift: DriftConfig = field(default_factory=DriftConfig)


@dataclass
class AdaptiveConfig:
    """When `partitioner=adaptive` plans anew; `ringexp.planning.adaptive` gives the reasons."""

    min_gain: float = 0.03  # the least predicted part of the latency that a new plan has to save
    tolerance: float = 0.005  # the part of the time that following may lose to the best static plan
    horizon: int = 20  # prompts within which a new plan has to pay for itself
    memory: int = 128  # prompts that are remembered
    probe_after: int = 16  # prompts after which a rank without tokens is tried out; 0: never


@dataclass
class FormulaConfig:
    """The regression of `partitioner=formula`."""

    degree: int = 2  # of the polynomial over log10(length) and percentage


@dataclass
class LutConfig:
    """The speed table of `partitioner=lut`."""

    interpolation: str = "pchip"  # between measured lengths and percentages: pchip | linear


@dataclass
class PartitionerConfig:
    """The rule that gives out tokens, and the settings of each rule that has any."""

    name: str = "lut"
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    formula: FormulaConfig = field(default_factory=FormulaConfig)
    lut: LutConfig = field(default_factory=LutConfig)
    options: dict[str, Any] = field(default_factory=dict)  # settings of a partitioner that a plug-in adds


@dataclass
class LayoutConfig:
    """The rule that maps token counts to positions."""

    name: str = "zigzag"


@dataclass
class KernelConfig:
    """The provider that computes blocks of attention."""

    name: str = "auto"


@dataclass
class TransportConfig:
    """The carrier of shards from rank to rank."""

    name: str = "auto"
    prefetch_hops: int | None = None  # hops posted ahead of compute; null: all


@dataclass
class TrackerConfig:
    """Settings of wandb: offline writes files only, online needs a login, disabled touches nothing.

    null: what the environment says (WANDB_MODE, WANDB_PROJECT, ...), else offline and project ringexp.
    """

    mode: str | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None


@dataclass
class CalibrationConfig:
    """Settings of measuring and remembering the speed per rank."""

    mode: str = "auto"  # auto: measure what the table lacks; table: never measure; refresh: measure all again
    min_samples: int = 5  # the minimum number of samples per point
    min_seconds: float = 0.1  # the minimum measuring time per point
    precision: float = 0.01  # stop once the 95 % interval of the median is within this fraction
    max_seconds: float = 1.0  # give up on precision after this time; two longer samples that agree suffice
    spot_check: bool = True  # measure one stored point again before the table is used (mode auto)
    tolerance: float = 0.05  # the relative error of that point above which a rank is measured again


@dataclass
class LaunchConfig:
    """Settings of starting ranks."""

    port: int = 0  # rendezvous port; 0: any free one
    timeout_s: float = 600.0  # a rank that waits longer for a peer gives up


@dataclass
class SlurmConfig:
    """One job's share of the cluster. Ranks are spread over `nodes` in rank order."""

    _target_: str = "hydra_plugins.ringexp_launcher.slurm.SlurmLauncher"
    executor: str = "slurm"  # local: submitit's own executor on this machine, one job after the other
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_min: int = 60
    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_rank: int | None = None  # null: SLURM's default; ranks of a node share its cores
    mem_gb_per_node: float | None = None
    exclusive: bool = False  # nothing else on the nodes while measuring
    end_signal_s: int = 120  # this long before the time limit ranks save what they measured and end
    setup: list[str] = field(default_factory=list)  # shell lines before the ranks, e.g. module load cuda
    sbatch: dict[str, Any] = field(default_factory=dict)  # any other flag: {reservation: name, requeue: true}
    srun: list[str] = field(default_factory=list)  # any other argument of srun


@dataclass
class Config:
    """All settings of one run, as the user gave them."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hetero: HeteroConfig = field(default_factory=HeteroConfig)
    partitioner: PartitionerConfig = field(default_factory=PartitionerConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    seq_len: int = 4096
    split: str = "tokens"  # tokens: queries and keys/values alike; kv: keys/values only, queries even
    prompt_file: str | None = None  # text to run, with model=checkpoint; seq_len is then its length
    prompt_text: str | None = None
    prompt_lines: bool = False  # each line of the text is a prompt of its own, all of them one batch
    prompt_lengths: list[int] | None = None  # tokens per random prompt of a batch, padded on the left
    decode_tokens: int = 0  # whole models: tokens to decode, and to measure, after prefill
    tile: int | None = None  # tokens are given out in whole tiles; null: 256 on CUDA, 16 on CPU
    memory_limit_gib: Any = None  # a number, or one per rank; null: what is free on CUDA, no limit on CPU
    device: str = "auto"
    seed: int = 0
    cuda_graph: bool | None = None  # replay each iteration as one CUDA graph; null: for attention models
    warmup: int = 2
    repeats: int = 10
    profile: bool = False  # write trace.json, a timeline of every hop
    check: bool = True  # compare the output with a single-process reference
    references: bool = True  # measure the homogeneous and even runs that slowdown and speedup need
    resume: bool | None = None  # take the results of an equal run that is complete; null: in sweeps
    report: bool = True  # end a sweep with figures and a page of its runs
    dry_run: bool = False
    output_root: str = "outputs"
    label: str = ""  # names the run; composed from the settings

    @property
    def world_size(self) -> int:
        return len(self.hetero.percentages)

    @property
    def speeds_file(self) -> Path:
        """The calibration table that runs share."""
        return Path(self.output_root) / "calibration" / "speeds.csv"

    @property
    def references_dir(self) -> Path:
        """The reference runs that other runs are measured against."""
        return Path(self.output_root) / "references"

    @property
    def completed_dir(self) -> Path:
        """The index of runs that are complete."""
        return Path(self.output_root) / "completed"
