"""Prepare the command line for Hydra: options in any order, names that are names, counts such as 4k.

Hydra takes its own options only before the settings, reads 50_100 as the number 50100, and raises an
exception for a number where it expects a name. Such arguments are corrected here, or refused in one line.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ringexp.cli.token_counts import written_out
from ringexp.errors import UserError
from ringexp.hetero.profiles import format_percentage, named_profiles, percentages_named

GROUPS = ("model", "hetero", "partitioner", "layout", "kernel", "transport", "tracker", "experiment")
"""The config groups a user chooses from by name."""

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/help", "hydra/job_logging", "hydra/hydra_logging")

TOKEN_COUNTS = (
    "seq_len",
    "prompt_lengths",
    "decode_tokens",
    "tile",
    "model.chunk_tokens",
    "model.default_seq_len",
)
"""Settings that count tokens and take counts such as 4k."""

HELP = "python -m ringexp --help lists all"


def prepared(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra takes them: the settings, then the options.

    Raises UserError for an unknown option, for a group that is given no name, and for bytes that are no text.
    """
    parser = _parser()
    ordered = _options_last([_text(argument) for argument in arguments], parser)
    parsed = parser.parse_args(ordered)
    if parsed.experimental_rerun is not None:
        raise UserError("--experimental-rerun is not supported: give the settings of the run again")
    if parsed.hydra_help:  # Hydra shows this without a config that settings could be of
        return ["--hydra-help"]
    overrides = with_counts(parsed.overrides)
    for override in overrides:
        _check_name(override)
    return [*overrides, *ordered[len(parsed.overrides) :]]


def with_counts(overrides: Iterable[str]) -> list[str]:
    """Return overrides with token counts such as seq_len=4k,16k written out."""
    return [_counted(override) for override in overrides]


def last_value(overrides: Iterable[str], key: str) -> str | None:
    """Return the text that the last override of a key gives it; None if there is none."""
    values = [value for name, value in map(_key_and_value, overrides) if name == key]
    return values[-1] if values else None


def profile_hint(name: str) -> str:
    """Return how to ask for the profile that a hetero name stands for; "" if it stands for none."""
    percentages = percentages_named(name)
    if percentages is None:
        return ""
    written = f"hetero.percentages=[{','.join(format_percentage(value) for value in percentages)}]"
    name = "mps_" + "_".join(format_percentage(value) for value in percentages)
    return f"hetero={name} or {written}" if name in named_profiles() else written


def _parser() -> argparse.ArgumentParser:
    from hydra._internal.utils import get_args_parser

    from ringexp import __version__

    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise UserError(f"{message} ({HELP})")

    parser.error = error
    for action in parser._actions:
        if "--version" in action.option_strings:
            action.version = f"ringexp {__version__}"  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def _text(argument: str) -> str:
    """Return an argument as UTF-8 text, whatever the locale; raise UserError for other bytes."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError as error:
        shown = argument.encode("utf-8", "backslashreplace").decode("utf-8")
        raise UserError(f"{shown} is not UTF-8 text") from error


def _options_last(arguments: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the settings, then the options with their values, both in the order of the command line."""
    actions = {name: action for action in parser._actions for name in action.option_strings}
    settings: list[str] = []
    options: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-"):
            settings.append(argument)
            continue
        options.append(argument)
        action = actions.get(argument)
        follows = bool(waiting) and not waiting[0].startswith("-")
        if action is None or action.nargs == 0 or not follows:
            continue
        if action.nargs is None or waiting[0] in (action.choices or ()):
            options.append(waiting.pop(0))
    return [*settings, *options]


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~").partition("@")[0], value


def _counted(override: str) -> str:
    key, equals, value = override.partition("=")
    return f"{key}{equals}{written_out(value)}" if key.lstrip("+") in TOKEN_COUNTS else override


def _check_name(override: str) -> None:
    """Raise UserError where a group is given anything but a name, or a sweep over names."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, Override, Sweep
    from hydra.errors import OverrideParseException

    key, text = _key_and_value(override)
    if key not in (*GROUPS, *HYDRA_GROUPS) or override.startswith("~"):
        return
    try:
        parsed: Override = OverridesParser.create().parse_override(override)
        value = parsed.value()
    except OverrideParseException:
        return  # Hydra says what is wrong with it
    if isinstance(value, Glob):
        return
    if isinstance(value, Sweep):
        value = list(parsed.sweep_iterator())
        texts = text.split(",") if len(text.split(",")) == len(value) else [str(one) for one in value]
    else:
        value, texts = [value], [text]
    for one, as_given in zip(value, texts, strict=True):
        if not _is_name(one, key):
            raise UserError(_no_name(key, as_given, one))


def _is_name(value: object, key: str) -> bool:
    if key == "experiment":  # several of them can be chosen together, or none
        return value is None or all(map(_is_text, value if isinstance(value, list) else [value]))
    return _is_text(value)


def _is_text(value: object) -> bool:
    from hydra.core.override_parser.types import QuotedString

    return isinstance(value, str | QuotedString)


def _no_name(key: str, text: str, value: object) -> str:
    """Return the one-line error for a group that was given a number, nothing, a list or a mapping."""
    problem = f"{key}={text} is not a name"
    if key == "hetero":
        if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
            return f"{problem}: use hetero.percentages={text}"
        if hint := profile_hint(text):
            return f"{problem}: use {hint}"
    if isinstance(value, list) and all(map(_is_text, value)):
        return f"{problem}: choose one, or sweep over all with -m {key}={','.join(map(str, value))}"
    return f"{problem}: give one name, such as {key}={EXAMPLES.get(key, 'NAME')} ({HELP})"


EXAMPLES = {
    "model": "attention_tiny",
    "hetero": "mps_50_100",
    "partitioner": "lut",
    "layout": "zigzag",
    "kernel": "auto",
    "transport": "auto",
    "tracker": "offline",
    "experiment": "smoke",
    "hydra/launcher": "slurm",
}
"""An example of a name for every group, for messages."""
