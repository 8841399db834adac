"""The dataclasses that every group in conf/ is checked against, and the checks that types cannot express.

`Config` is what a run is. A mistyped key fails against these classes; a value that is of the right type but
cannot work fails in `validate`. Both end as one `UserError` line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ringexp.configure.ranges import check_ranges
from ringexp.errors import UserError
from ringexp.hetero.drift import DriftConfig, drift_label, validate_drift
from ringexp.names import folder_part
from ringexp.planning import AdaptiveConfig, validate_adaptive

PACKAGED, SOURCE = Path(__file__).parent / "conf", Path(__file__).parents[2] / "conf"
CONF_DIR = PACKAGED if PACKAGED.is_dir() else SOURCE
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
KERNELS = ("auto", "reference", "sdpa", "cudnn", "triton", "flash")
TRANSPORTS = ("auto", "nccl", "ipc", "gloo")
TRACKER_MODES = ("offline", "online", "disabled")
CALIBRATION_MODES = ("auto", "table", "refresh")
DEFAULT_TILE = {"cuda": 256, "cpu": 16}


@dataclass
class ModelConfig:
    """What every workload has: a precision, a batch, and the length that suits it."""

    name: str = "???"
    kind: str = "???"  # attention | fms
    dtype: str = "float32"
    batch_size: int = 1
    default_seq_len: int = 4096

    def num_chunks(self, seq_len: int) -> int:
        """Return the number of chunks that prefill of a prompt is done in."""
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
    chunk_tokens: int | None = None  # prefill in chunks of about so many tokens, on all ranks together
    checkpoint: str | None = None  # a Hugging Face folder, which then says architecture and shape

    def num_chunks(self, seq_len: int) -> int:
        """Return the number of chunks of about `chunk_tokens`; 1 without chunks."""
        return -(-seq_len // self.chunk_tokens) if self.chunk_tokens else 1


@dataclass
class HeteroConfig:
    """How fast each rank may be: one percentage a rank, in rank order; the world size follows from it."""

    percentages: list[float] = field(default_factory=lambda: [100.0, 100.0])
    throttle: str = "auto"
    drift: DriftConfig = field(default_factory=DriftConfig)

    @property
    def is_measured(self) -> bool:
        """Whether the machine is taken as it is, each device by its own measured speed."""
        return self.throttle == "measured"


@dataclass
class PartitionerConfig:
    name: str = "lut"
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)


@dataclass
class LayoutConfig:
    name: str = "zigzag"


@dataclass
class KernelConfig:
    name: str = "auto"


@dataclass
class TransportConfig:
    name: str = "auto"
    prefetch_hops: int | None = None  # hops posted ahead of compute; null: all


@dataclass
class TrackerConfig:
    """wandb: offline writes files only, online needs a login, disabled touches nothing.

    null: what the environment says (WANDB_MODE, WANDB_PROJECT, ...), else offline and project ringexp.
    """

    mode: str | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None


@dataclass
class CalibrationConfig:
    """How a rank's speed is measured and remembered."""

    mode: str = "auto"  # auto: measure what the table lacks; table: never measure; refresh: measure anew
    min_samples: int = 5  # each point is measured at least so often,
    min_seconds: float = 0.1  # and so long,
    precision: float = 0.01  # then until its median is known so well (95 % confidence),
    max_seconds: float = 1.0  # or so long; two samples that are longer and agree so well do, too
    spot_check: bool = True  # measure one stored point again before it is relied on (mode auto)
    tolerance: float = 0.05  # how far off that may be before a rank is measured anew


@dataclass
class LaunchConfig:
    port: int = 0  # rendezvous port; 0: any free one
    timeout_s: float = 600.0  # a rank that waits longer for a peer gives up


@dataclass
class Config:
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
    shard: str = "tokens"
    prompt_file: str | None = None  # text to run, with model=checkpoint; seq_len is then its length
    prompt_text: str | None = None
    prompt_lines: bool = False  # each line of the text is a prompt of its own, all of them one batch
    prompt_lengths: list[int] | None = None  # tokens of each random prompt of a batch, padded on the left
    decode_tokens: int = 0  # whole models: decode so many tokens after prefill, and measure that too
    tile: int | None = None  # tokens are handed out in whole tiles; null: 256 on CUDA, 16 on CPU
    memory_limit_gib: Any = None  # a number, or one a rank; null: what is free on CUDA, no limit on CPU
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


GROUPS: dict[str, type] = {
    "attention_model": AttentionModelConfig,
    "fms_model": FmsModelConfig,
    "hetero": HeteroConfig,
    "partitioner": PartitionerConfig,
    "layout": LayoutConfig,
    "kernel": KernelConfig,
    "transport": TransportConfig,
    "tracker": TrackerConfig,
}
"""Schema name -> dataclass; each file in conf/ names its schema in its defaults list."""


def register() -> None:
    """Make the schemas, the grid of hetero profiles and the resolvers known to Hydra."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from ringexp.hetero.profiles import named_profiles
    from ringexp.machine import default_device, gpu_count
    from ringexp.slurm.settings import SlurmConfig

    store = ConfigStore.instance()
    store.store(name="ringexp_schema", node=Config)
    store.store(group="schema", name="slurm", node=SlurmConfig)
    for name, node in GROUPS.items():
        store.store(group="schema", name=name, node=node)
    for name, percentages in named_profiles().items():
        if name != "none":  # conf/hetero/ has none and measured
            store.store(group="hetero", name=name, node=HeteroConfig(percentages=list(percentages)))

    def resolver(name: str, function: Any) -> None:
        # Cached, so that all jobs of a sweep see one value.
        OmegaConf.register_new_resolver(f"ringexp.{name}", function, replace=True, use_cache=True)

    resolver(
        "default_model", lambda: "attention_mha_4096" if default_device() == "cuda" else "attention_tiny"
    )
    resolver("full_speed", lambda device: [100.0] * (2 if device == "cpu" else gpu_count() or 2))
    resolver("profile", lambda p, drift=None: drift_label(list(p), DriftConfig(**drift) if drift else None))
    resolver("token", _random_token)
    resolver("folder", folder_name)
    resolver("unless_dry", lambda dry, folder, otherwise=None: otherwise if dry else folder)
    OmegaConf.register_new_resolver("ringexp.length", length_of, replace=True)


def length_of(seq_len: int, *, _root_: Any) -> int:
    """Return the tokens of the composed run's longest prompt; `seq_len` if it has no prompts of its own."""
    from omegaconf import OmegaConf

    from ringexp.models.prompt import tokens_of

    names = ("prompt_file", "prompt_text", "prompt_lines", "prompt_lengths")
    given = {name: OmegaConf.select(_root_, name) for name in names}
    if given["prompt_lengths"] is not None:
        given["prompt_lengths"] = list(given["prompt_lengths"])
    model = FmsModelConfig(checkpoint=OmegaConf.select(_root_, "model.checkpoint"))
    return tokens_of(Config(model=model, seq_len=seq_len, **given))


def folder_name(text: str, key: str = "label") -> str:
    """Return `text` as a part of a folder's name, shortened where it is too long.

    Raises UserError for text that leads to another folder or cannot be a name.
    """
    text = str(text)
    if not text.isprintable() or "/" in text:
        raise UserError(
            f"{key}={text!r} becomes part of a folder's name: use printable characters other than /"
        )
    return folder_part(text)


def _random_token() -> str:
    """Three hex digits that keep two runs started in the same second apart."""
    import secrets

    return secrets.token_hex(2)[:3]


def from_hydra(cfg: Any) -> Config:
    """The composed OmegaConf config as a checked `Config`.

    Raises UserError for a key that no dataclass has (added with `+key=value`) and for what `validate` finds.
    """
    from omegaconf import OmegaConf

    from ringexp.models.prompt import with_prompt

    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    _reject_unknown_keys(OmegaConf.to_container(cfg, resolve=True), config, prefix="")
    validate(config)
    return with_prompt(config)


def grouped(config: Config, group: str) -> Config:
    """Return the config with this wandb group, unless the config or the environment already has a group."""
    tracker = config.tracker
    group = tracker.group or os.environ.get("WANDB_RUN_GROUP") or group
    return replace(config, tracker=replace(tracker, group=group))


def from_dict(data: dict[str, Any]) -> Config:
    """The `Config` that `dataclasses.asdict` was taken of; for ranks, which get theirs as JSON."""
    from ringexp.models.registry import config_from

    return replace(_nested(Config, data), model=config_from(data["model"]))


def _nested(kind: type, data: dict[str, Any]) -> Any:
    """A dataclass with those in it; a model's own settings are not of the class that its group names."""
    values = {}
    for item in fields(kind):
        default = item.default_factory() if callable(item.default_factory) else None
        is_nested = is_dataclass(default) and not isinstance(default, ModelConfig)
        values[item.name] = _nested(type(default), data[item.name]) if is_nested else data[item.name]
    return kind(**values)


def _reject_unknown_keys(data: Any, config: Any, prefix: str) -> None:
    known = {item.name for item in fields(config)}
    for key, value in data.items():
        if key not in known:
            raise UserError(unknown_key(prefix + key, [prefix + name for name in known]))
        nested = getattr(config, key)
        if is_dataclass(nested) and isinstance(value, dict):
            _reject_unknown_keys(value, nested, f"{prefix}{key}.")


def known_keys(config: Any = None, prefix: str = "") -> list[str]:
    """Every dotted key a user may set."""
    config = Config() if config is None else config
    keys: list[str] = []
    for item in fields(config):
        keys.append(prefix + item.name)
        value = getattr(config, item.name)
        if is_dataclass(value):
            keys += known_keys(value, f"{prefix}{item.name}.")
    return keys


ALIASES = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "cuda:0": "cuda",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "naive": "reference",
    "math": "reference",
    "eager": "reference",
    "torch": "sdpa",
    "hopper": "triton",
    "flash_attention": "flash",
    "flash_attention_2": "flash",
    "fa4": "flash",
    "mpi": "gloo",
    "tcp": "gloo",
    "socket": "gloo",
    "p2p": "ipc",
    "nvlink": "ipc",
    "equal": "even",
    "uniform": "even",
    "percentage": "uneven",
    "proportional": "uneven",
    "table": "lut",
    "polynomial": "formula",
    "regression": "formula",
    "optimal": "balanced",
    "waterfilling": "balanced",
    "dynamic": "adaptive",
    "striped": "zigzag",
    "stripe": "zigzag",
    "plain": "contiguous",
    "wandb": "online",
    "off": "disabled",
    "none": "disabled",
    "smctrl": "green_context",
    "cgroup": "cpu_quota",
    "cgroups": "cpu_quota",
    "pacing": "cpu_pacing",
    "quota": "cpu_quota",
    "llama3": "llama3_8b",
    "llama": "llama3_8b",
    "mixtral": "mixtral_8x7b",
    "mistral": "mistral_7b",
    "qwen3": "qwen3_8b",
    "granite": "granite_8b",
    "submitit_slurm": "slurm",
    "local": "shared_ranks",
    "queries": "tokens",
}
"""Other names of choices, where the nearest spelling is another one or none."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint for the end of an error: ringexp's name for a word, or the nearest known word, or ""."""
    known = list(known)
    alias = ALIASES.get(word.lower())
    near = [alias] if alias in known else get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown_key(key: str, known: list[str]) -> str:
    """The one line for a key that does not exist."""
    return f"there is no setting {key}{did_you_mean(key, known)} (python -m ringexp --help lists them)"


def validate(config: Config) -> None:
    """Raises UserError, naming the setting, for values that no run could use."""
    from ringexp.choices import THROTTLES
    from ringexp.hetero.profiles import validate_percentages
    from ringexp.models.registry import model_of
    from ringexp.planning import BY_COST, LAYOUTS, PARTITIONERS, SHARD_MODES, validate_memory_limit

    def one_of(key: str, value: str, allowed: Any) -> None:
        if value not in allowed:
            hint = did_you_mean(value, allowed)
            raise UserError(f"{key}={value} is unknown; choose one of {', '.join(allowed)}{hint}")

    def at_least(key: str, value: float, minimum: float) -> None:
        if not value >= minimum:
            raise UserError(f"{key}={value} must be at least {minimum}")

    check_ranges(config)
    folder_name(config.label)
    folder_name(config.model.name, "model.name")
    one_of("partitioner.name", config.partitioner.name, PARTITIONERS)
    one_of("layout.name", config.layout.name, LAYOUTS)
    one_of("shard", config.shard, SHARD_MODES)
    one_of("kernel.name", config.kernel.name, KERNELS)
    one_of("transport.name", config.transport.name, TRANSPORTS)
    if config.tracker.mode is not None:
        one_of("tracker.mode", config.tracker.mode, TRACKER_MODES)
    THROTTLES.check(config.hetero.throttle)
    one_of("calibration.mode", config.calibration.mode, CALIBRATION_MODES)
    one_of("device", config.device, DEVICES)
    one_of("model.dtype", config.model.dtype, DTYPES)
    validate_percentages(config.hetero.percentages)
    validate_memory_limit(config.memory_limit_gib, config.world_size)
    validate_drift(config.hetero.drift, config.hetero.percentages, config.hetero.throttle)
    if config.hetero.drift and config.hetero.drift.at >= config.repeats and not config.dry_run:
        raise UserError(
            f"hetero.drift.at={config.hetero.drift.at} comes after all repeats={config.repeats} prompts: "
            "use more repeats or an earlier prompt"
        )
    validate_adaptive(config.partitioner.adaptive)
    if config.shard == "kv" and config.partitioner.name in BY_COST:
        raise UserError(
            f"partitioner={config.partitioner.name} balances what ranks compute, which shard=kv leaves even; "
            "use another one"
        )
    if config.hetero.is_measured and config.partitioner.name == "uneven":
        raise UserError(
            "partitioner=uneven splits by percentage, and hetero=measured has none; "
            "use even, lut, formula, balanced or adaptive"
        )
    at_least("calibration.max_seconds", config.calibration.max_seconds, config.calibration.min_seconds)
    model = model_of(config.model)
    if config.decode_tokens and not model.generates_text:
        raise UserError(f"decode_tokens is for whole models; model={config.model.name} is one layer")
    if config.decode_tokens:
        at_least("decode_tokens", config.decode_tokens, 3)  # one by prefill, one to warm up
    model.check_settings(config.world_size, config.shard)
