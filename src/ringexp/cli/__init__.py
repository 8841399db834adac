"""The command line: `ringexp COMMAND`, one module per command.

`python -m ringexp OVERRIDES` is `ringexp run OVERRIDES`; with -m it is `ringexp sweep`.
"""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = ("report", "results", "simulate")
"""Commands that Hydra does not compose; each is the function `main` of the module of its name."""


def main() -> None:
    """Carry out the command that the first argument names; without one, run what Hydra composes."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in COMMANDS:
        sys.argv[:2] = [f"ringexp {command}"]
        module = import_module(f"ringexp.cli.{command}")
    else:
        module = import_module("ringexp.cli.run")
    module.main()
