"""Check that every number is in its range and that every text is text. Pure Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING

from ringexp.config import Config
from ringexp.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_TOKENS = 2**31 - 1
MAX_RANKS = 4096
MAX_ITERATIONS = 1_000_000
MAX_WIDTH = 2**20
MAX_GIB = 2**30
MAX_NUMBER = 2**40
YEAR_S = 365 * 24 * 3600


@dataclass(frozen=True)
class Range:
    """The least and the greatest value of a setting. whole: only whole numbers are allowed."""

    least: float
    most: float
    whole: bool = True

    def check(self, key: str, value: object) -> None:
        """Raise UserError for a value that is no number or out of range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = isinstance(value, int) or not self.whole
        if not (number and whole and self.least <= value <= self.most):  # pyright: ignore[reportOperatorIssue]
            kind = " a whole number," if self.whole and not whole else ""
            raise UserError(f"{key}={value} must be{kind} at least {self.least} and at most {self.most}")


TOKENS = Range(1, MAX_TOKENS)
SECONDS = Range(0, YEAR_S, whole=False)

RANGES = {
    "model.batch_size": Range(1, 2**31 - 1),
    "model.default_seq_len": TOKENS,
    "model.emb_dim": Range(1, MAX_WIDTH),
    "model.num_heads": Range(1, MAX_WIDTH),
    "model.num_kv_heads": Range(1, MAX_WIDTH),
    "model.head_dim": Range(1, MAX_WIDTH),
    "model.chunk_tokens": TOKENS,
    "hetero.drift.at": Range(0, MAX_ITERATIONS),
    "hetero.drift.over": Range(1, MAX_ITERATIONS),
    "partitioner.adaptive.min_gain": Range(0, 1, whole=False),
    "partitioner.adaptive.tolerance": Range(0, 1, whole=False),
    "partitioner.adaptive.horizon": Range(1, MAX_ITERATIONS),
    "partitioner.adaptive.memory": Range(12, MAX_ITERATIONS),
    "partitioner.adaptive.probe_after": Range(0, MAX_ITERATIONS),
    "partitioner.formula.degree": Range(1, 5),
    "transport.prefetch_hops": Range(1, MAX_RANKS),
    "calibration.min_samples": Range(1, MAX_ITERATIONS),
    "calibration.min_seconds": SECONDS,
    "calibration.precision": Range(0, 1, whole=False),
    "calibration.max_seconds": SECONDS,
    "calibration.tolerance": Range(0, 1000, whole=False),
    "launch.port": Range(0, 65535),
    "launch.timeout_s": Range(1, YEAR_S, whole=False),
    "seq_len": TOKENS,
    "decode_tokens": Range(0, MAX_TOKENS),
    "tile": TOKENS,
    "seed": Range(-(2**62), 2**62),
    "warmup": Range(0, MAX_ITERATIONS),
    "repeats": Range(1, MAX_ITERATIONS),
}
"""The range of every setting that is one number. A setting that may be null has a range for its numbers."""

OVERRIDES = {"nlayers": Range(1, MAX_RANKS)}
OVERRIDE = Range(-MAX_NUMBER, MAX_NUMBER, whole=False)
"""The range of numbers in a model's own config. With larger ones FMS would build for minutes or for ever."""

FREE_TEXT = ("prompt_text",)
"""Settings whose text may have several lines."""


def check_ranges(config: Config) -> None:
    """Raise UserError, naming the setting, for a number out of its range and for text that cannot be."""
    for key, value in values(config):
        if isinstance(value, str):
            check_text(key, value)
        elif key in RANGES and value is not None:
            RANGES[key].check(key, value)
    for name, value in getattr(config.model, "overrides", {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            OVERRIDES.get(name, OVERRIDE).check(f"model.overrides.{name}", value)
    for length in config.prompt_lengths or ():
        TOKENS.check("an entry of prompt_lengths", length)
    for limit in config.memory_limit_gib if isinstance(config.memory_limit_gib, list) else ():
        _check_limit(config, limit)
    _check_limit(config, config.memory_limit_gib)
    if config.tracker.tags and "" in config.tracker.tags:
        raise UserError(f"tracker.tags={list(config.tracker.tags)} has an empty tag; leave it out")
    if len(config.hetero.percentages) > MAX_RANKS:
        count = len(config.hetero.percentages)
        raise UserError(f"hetero.percentages names {count} ranks, and at most {MAX_RANKS} are possible")


def values(config: DataclassInstance, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted name and the value of every setting, and of text within lists and mappings."""
    for item in fields(config):
        key, value = prefix + item.name, getattr(config, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from values(value, f"{key}.")
            continue
        yield key, value
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
        )
        yield from ((f"{key}[{name}]", text) for name, text in inner if isinstance(text, str))


def check_text(key: str, text: str) -> None:
    """Raise UserError for control characters and for bytes that are no UTF-8."""
    shown = text.encode("unicode_escape").decode("ascii")
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise UserError(f"{key}={shown} is not UTF-8 text")
    controls = {chr(code) for code in (*range(32), 127)} - (set("\n\r\t\f\v") if key in FREE_TEXT else set())
    if controls & set(text):
        raise UserError(f"{key}={shown} has control characters; leave them out")


def _check_limit(config: Config, limit: object) -> None:
    """Raise UserError for a limit above any memory. `validate_memory_limit` checks everything else."""
    if isinstance(limit, int | float) and not limit <= MAX_GIB:
        raise UserError(
            f"memory_limit_gib={config.memory_limit_gib} must be above 0 and at most {MAX_GIB}; null is no "
            "limit on the CPU, and what is free on CUDA"
        )
