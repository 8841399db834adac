"""The identity of a run: its model, profile, prompt, and way of splitting."""

from __future__ import annotations

from collections.abc import Sequence

from ringexp.errors import UserError
from ringexp.printable import plain
from ringexp.report.folder import Damaged
from ringexp.report.values import MOST_TEXT, Cell, number, section, setting, word
from ringexp.stored import JsonObject, JsonValue

DRIFTING = "speeds that change"
"""The pattern of profiles with a drift. Runs with such profiles are compared with each other only."""

MOST_RANKS = 4_096


def identity(config: JsonObject, results: JsonObject) -> dict[str, Cell]:
    """Return what a run was, as far as its results.json or else its config says: columns of the table."""
    hetero, model = section(config, "hetero"), section(config, "model")
    percentages = _percentages(results.get("percentages") or hetero.get("percentages"))
    drift = _drift(section(results, "drift") or section(hetero, "drift", "hetero."))
    profile = "/".join(f"{value:g}" for value in percentages)
    transport, kernel = section(config, "transport"), section(config, "kernel")
    requested = {"prefetch_hops": transport.get("prefetch_hops"), "tile": config.get("tile")}
    requested |= {"cuda_graph": config.get("cuda_graph")}
    requested |= {"prompt_lengths": results.get("prompt_lengths") or config.get("prompt_lengths")}
    requested |= {"chunk_tokens": model.get("chunk_tokens")}
    columns: dict[str, Cell] = {
        "model": word(results.get("model"), word(model.get("name"))),
        "seq_len": _seq_len(results, config, model),
        "layout": word(results.get("layout"), word(section(config, "layout").get("name"))),
        "partitioner": word(results.get("partitioner"), word(section(config, "partitioner").get("name"))),
        "split": word(results.get("split"), word(config.get("split", config.get("shard")), "tokens")),
        "kernel": word(kernel.get("name")),
        "transport": word(transport.get("name")),
        "throttle": word(hetero.get("throttle")),
        "kernel_asked": word(kernel.get("name")),
        "settings": ", ".join(f"{name}={setting(to)}" for name, to in requested.items() if to is not None),
        "shape": word(results.get("shape"), _shape(model)),
        "world_size": _world_size(percentages, results),
    }
    if percentages:
        columns |= {
            "profile": f"{profile}, {drift}" if drift else profile,
            "drift": drift,
            "slow_percent": 100 * min(percentages) / max(percentages),
            "fast_percent": max(percentages),
            "pattern": DRIFTING if drift else _pattern(percentages),
        }
    return columns


def _seq_len(results: JsonObject, config: JsonObject, model: JsonObject) -> int | None:
    """Return the prompt's length in tokens; if the run was only composed, maybe the model's default."""
    value = results.get("seq_len") or config.get("seq_len")
    if value == "${model.default_seq_len}":
        value = model.get("default_seq_len")
    if value is None or (isinstance(value, str) and value.startswith("${")):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**53:
        raise Damaged("seq_len is no number of tokens")
    return value


def _percentages(values: JsonValue) -> list[float]:
    """Return one percentage per rank; an empty list where they are not known or were only composed."""
    if values is None or (isinstance(values, str) and values.startswith("${")):
        return []
    if not isinstance(values, list) or not 0 < len(values) <= MOST_RANKS:
        raise Damaged(f"percentages are no list of 1 to {MOST_RANKS}")
    numbers = [number(value) for value in values]
    if any(number is None or not 0 < number <= 1e6 for number in numbers):
        raise Damaged("percentages are not all numbers above 0")
    return [number for number in numbers if number is not None]


def _world_size(percentages: Sequence[float], results: JsonObject) -> int | None:
    lists = (results.get(name) for name in ("tokens", "speeds", "shares", "busy_ms"))
    return len(percentages) or next(
        (len(rank_values) for rank_values in lists if isinstance(rank_values, list)), None
    )


def _drift(drift: JsonObject) -> str:
    """Return a drift in words, such as "ramp to 100/50 at 10 over 10"; "" without a drift."""
    kind = word(drift.get("kind"), "none")
    if kind == "none":
        return ""
    to = "/".join(f"{value:g}" for value in _percentages(drift.get("to")))
    over = f" over {setting(drift.get('over'))}" if kind != "step" else ""
    return f"{kind} to {to} at {setting(drift.get('at'))}{over}"


def _pattern(percentages: Sequence[float]) -> str:
    """Return the profile without the slowest rank, such as 100/*. An axis of percentages keeps this part."""
    if len(set(percentages)) == 1:
        return "equal"
    slowest = percentages.index(min(percentages))
    return "/".join("*" if rank == slowest else f"{value:g}" for rank, value in enumerate(percentages))


def _shape(model: JsonObject) -> str | None:
    """Return the key of the model's calibration rows but for the kernel; None for an older config.

    The folder of a checkpoint, which the config may name anywhere, is not opened.
    """
    from ringexp.models.registry import config_from, model_of

    if model.get("checkpoint"):
        return f"checkpoint {word(model['checkpoint'])}"
    try:
        return plain(model_of(config_from(model)).speed_key)[:MOST_TEXT]
    except (UserError, TypeError, AttributeError, ValueError):
        return None
