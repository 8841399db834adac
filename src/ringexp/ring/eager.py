"""Functions that talk to other ranks are not compiled: a graph of torch.compile breaks where it meets one.

torch.compiler.disable does this, but imports the compiler, which takes seconds. So it is called only after
somebody else has imported the compiler.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function so that torch.compile leaves it alone, with everything that it calls."""
    uncompiled: dict[str, Callable[P, R]] = {}

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
