"""The command line: `ringexp COMMAND ...`, one module per command; Hydra composes run, sweep and plan.

`python -m ringexp OVERRIDES`, and `ringexp OVERRIDES`, is `ringexp run OVERRIDES`.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module

COMPOSED: dict[str, list[str]] = {"run": [], "sweep": ["-m"], "plan": ["dry_run=true"]}
"""Commands that Hydra composes -> the arguments that each of them stands for."""

COMMANDS = (*COMPOSED, "report", "results", "simulate")

HELP = """ringexp: exact ring-attention prefill on unequal GPUs.

  ringexp run OVERRIDES       one run: measure each rank, plan the split, run the ring, check the result
  ringexp sweep OVERRIDES     every combination of comma-separated values, then a report
  ringexp plan OVERRIDES      the plan of a run; starts nothing, needs no GPU
  ringexp report FOLDER ...   figures and a page of finished runs
  ringexp results FOLDER ...  list, filter and compare finished runs
  ringexp simulate ...        a ring of devices that are not there

  ringexp run partitioner=lut hetero=mps_50_100
  ringexp sweep partitioner=even,lut seq_len=4k,8k

`ringexp COMMAND --help` says more; that of run, sweep and plan lists all settings and choices.
OVERRIDES alone, also after `python -m ringexp`, mean run, and with -m sweep."""


def main() -> None:
    """Carry out `ringexp ...`: as `dispatch`, but --help without a command lists the commands."""
    if sys.argv[1:] in (["--help"], ["-h"], ["help"]):
        print(HELP)
    else:
        dispatch()


def dispatch() -> None:
    """Carry out the command that the first argument names; without one, run what Hydra composes."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in COMPOSED:
        sys.argv[1:] = [*COMPOSED[command], *sys.argv[2:]]
    elif command in COMMANDS:
        sys.argv[:2] = [f"ringexp {command}"]
        import_module(f"ringexp.cli.{command}").main()
        return
    elif re.fullmatch(r"[A-Za-z][\w-]*", command):
        _refuse(command)
    if "-sc" in sys.argv or "--shell-completion" in sys.argv:
        _complete_commands()
    import_module("ringexp.cli.run").main()


def _refuse(command: str) -> None:
    """End with one line for a word that is no command; a setting has an equals sign."""
    from difflib import get_close_matches

    near = get_close_matches(command, COMMANDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    text = (
        f"there is no command {command}; choose one of {', '.join(COMMANDS)}, or give {command}=VALUE{hint}"
    )
    print(f"ringexp: error: {text}", file=sys.stderr)
    sys.exit(2)


def _complete_commands() -> None:
    """Print the commands that a first word may become, and hide a whole command from Hydra."""
    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) == 1 and words[0]:
        print(" ".join(name for name in COMMANDS if name.startswith(words[0])))
    if len(words) > 1 and words[0] in COMPOSED:
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
