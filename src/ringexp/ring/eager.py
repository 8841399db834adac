"""Functions that talk to other ranks run as they are where torch.compile meets them: a graph breaks there.

torch.compiler.disable does it, but imports the compiler, which takes seconds. So it is asked only where the
compiler has been imported already.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that torch.compile leaves alone, and everything that it calls."""
    uncompiled: dict[str, Callable[..., Any]] = {}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if "function" not in uncompiled:
            import torch

            reason = f"ringexp.{function.__name__} talks to other ranks"
            disable: Any = torch.compiler.disable
            uncompiled["function"] = disable(function, reason=reason)
        return uncompiled["function"](*args, **kwargs)

    return call
