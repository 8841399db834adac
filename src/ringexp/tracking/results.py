"""The content of results.json as dataclasses: how a run ended, and all its figures.

Everyone who reads results.json does it through `RunRecord.from_json` and `RunResult.from_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ringexp.calibration.speed_fit import SpeedFit
from ringexp.planning import EqualLinks, Link, RankCost
from ringexp.stored import NOT_FINITE, JsonObject, JsonValue, an_object
from ringexp.tracking.typed_json import Reader

COMPLETE, FAILED, INTERRUPTED, PLANNED = "complete", "failed", "interrupted", "planned"
STATUSES = (PLANNED, COMPLETE, FAILED, INTERRUPTED)
ENDED = (COMPLETE, FAILED, INTERRUPTED)


@dataclass(frozen=True)
class Hop:
    """The cost of one hop, as the plan expected it.

    Attributes:
        latency_ms: ms per hop.
        token_ms: ms per token of the shard.
        direct: whether shards came straight from their owners.
    """

    latency_ms: float
    token_ms: float
    direct: bool = False

    @classmethod
    def of(cls, links: EqualLinks) -> Hop:
        """Return what is recorded of the links between the ranks."""
        return cls(links.link.latency_ms, links.link.unit_ms, links.direct)

    @property
    def links(self) -> EqualLinks:
        """The links between the ranks."""
        return EqualLinks(Link(self.latency_ms, self.token_ms), self.direct)


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding after prefill, with the cache where prefill left it.

    Attributes:
        tokens: new tokens of each of `sequences`.
        sequences: continuations that were decoded together.
        ms_per_token: time of one new token of every sequence.
        tokens_per_s: new tokens per second, of all sequences together.
        speedup: the ms_per_token of one full-speed device / this one.
        kept: for each rank, how many of the new tokens but the last it keeps.
        cache_bytes: for each rank, the keys and values of prompt and new tokens.
        agreeing: tokens of `tokens` x `sequences` that one process would have chosen too; None: not checked.
        longest_context: tokens that would fit these ranks with their caches, split as they are, by
            `planning.memory`; None without a memory limit.
        longest_context_single: the same on the rank with the most memory alone.
        texts: the continuations of real prompts.
    """

    tokens: int
    sequences: int
    ms_per_token: float
    tokens_per_s: float
    speedup: float | None
    kept: list[int]
    cache_bytes: list[int]
    agreeing: int | None
    longest_context: int | None
    longest_context_single: int | None
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prompt:
    """The settings and speeds of one timed iteration. Lists have one entry per rank.

    Attributes:
        percentages: the speed that the profile gives each rank.
        tokens: the plan's token counts.
        speeds: TFLOP/s by busy time; None for a rank without tokens.
        calibrated_speeds: TFLOP/s at these percentages, measured before the run; None: not measured.
        capacity_efficiency: the iteration's, by the calibrated speeds.
        replan_ms: what the slowest rank took to change to this plan or to capture its graph; 0: it had both.
    """

    percentages: list[float]
    tokens: list[int]
    speeds: list[float | None]
    calibrated_speeds: list[float] | None
    capacity_efficiency: float | None
    replan_ms: float = 0.0


@dataclass(frozen=True)
class Adaptation:
    """All timed iterations of a run whose speeds or plans change.

    Attributes:
        replans: how many plans took the place of another.
        replan_ms: what these changes took together.
        total_ms: all latencies and `replan_ms`.
        capacity_efficiency: capacity-ideal time of all prompts / their latencies.
        prompts: what each iteration ran with.
    """

    replans: int
    replan_ms: float
    total_ms: float
    capacity_efficiency: float | None
    prompts: list[Prompt]


@dataclass(frozen=True)
class References:
    """The reference times for slowdown, speedup and capacity efficiency; None where not measured."""

    homogeneous_ms: float | None = None
    even_ms: float | None = None
    single_ms: float | None = None
    single_back_to_back_ms: float | None = None
    single_speed_tflops: float | None = None
    single_decode_ms: float | None = None


@dataclass(frozen=True)
class RunResult:
    """One run's figures, as results.json, wandb and the tables have them; see docs/metrics.md."""

    latency_ms_median: float
    latency_ms_spread: float
    latency_ms_iterations: list[float]
    settled_iterations: int
    latency_ms_back_to_back: float
    hop_latency_ms: float | None
    hop_gbps: float | None
    latency_ms_predicted: float | None
    time_to_first_token_ms: float | None
    tokens: list[int]
    kv_tokens: list[int]
    shares: list[float]
    speeds: list[float]
    throttle: str
    throttle_emulated: bool
    throttle_achieved: list[float | None]
    sm_counts: list[int | None]
    cublas_sms: list[int | None]
    slowdown: float | None
    efficiency: float
    speedup_over_even: float | None
    capacity_efficiency: float | None
    busy_ms: list[float]
    linear_ms: list[float]
    attention_ms: list[float]
    wait_ms: list[float]
    comm_ms: list[float]
    idle_ms: list[float]
    tflops: float
    peak_memory_bytes: list[int]
    error_max_abs: float | None
    error_single_max_abs: float | None
    error_token: float | None
    error_single_token: float | None
    exact: bool | None
    kernel: str
    transport: str
    plan: list[str]
    costs: list[RankCost]
    hop: Hop | None
    num_units: int
    decode: Decoding | None = None
    adaptation: Adaptation | None = None
    references: References = field(default_factory=References)
    speed_model: SpeedFit | None = None
    missing_references: list[str] = field(default_factory=list)
    why_inexact: str | None = None
    error_checkpoint: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, JsonValue], whole: bool = False) -> RunResult:
        """Read the figures that a results.json has.

        Args:
            content: the parsed file, of this schema or an older one.
            whole: require every figure, as a complete run of this schema has them. Otherwise a figure that
                is not there is NaN, None, 0 or empty, by its type.

        Raises:
            ValueError: a figure is of another type, or missing although `whole`.
        """
        values = dict(content)
        lost = an_object(content.get(NOT_FINITE, {}), NOT_FINITE) if whole else {}
        for name, number in lost.items():
            if values.get(name) is None:
                values[name] = float(str(number))
        if values.get("speed_model") == {}:  # before schema 3, for "none was fitted"
            values["speed_model"] = None
        return Reader(whole, frozenset(lost)).read(cls, values)


@dataclass(frozen=True)
class RunRecord:
    """The end of a run, and the parsed results.json that tells it.

    Attributes:
        status: planned, complete, failed or interrupted.
        exact: whether the output was right; None: not checked. Anything else in the file counts as wrong.
        reason: why the run is not complete.
        key: the run's key in the index of complete runs.
        resumed_from: the folder of the equal run whose results these are.
        wandb: the folder or address of the wandb record.
        content: everything that the file has.
    """

    status: str
    exact: bool | None
    reason: str | None
    key: str | None
    resumed_from: str | None
    wandb: str | None
    content: JsonObject

    @classmethod
    def from_json(cls, value: JsonValue) -> RunRecord:
        """Read a results.json of any schema. Raises ValueError for content that cannot be one."""
        content = an_object(value, "the content")
        status = content.get("status")
        if not isinstance(status, str) or status not in STATUSES:
            raise ValueError(f"status={status!r} is none of {', '.join(STATUSES)}")
        exact = content.get("exact")
        return cls(
            status=status,
            exact=None if exact is None else exact is True,
            reason=_text(content, "reason"),
            key=_text(content, "key"),
            resumed_from=_text(content, "resumed_from"),
            wandb=_text(content, "wandb"),
            content=content,
        )

    def figures(self) -> RunResult:
        """Return the figures that are there. Raises ValueError for one of another type."""
        return RunResult.from_json(self.content)

    @property
    def is_complete(self) -> bool:
        return self.status == COMPLETE

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


def _text(content: JsonObject, name: str) -> str | None:
    value = content.get(name)
    return value if isinstance(value, str) else None
