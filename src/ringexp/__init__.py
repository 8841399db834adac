"""Exact ring-attention prefill on unequal GPUs: measure, plan, run, prove."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`get_model` and `generate`, which need torch and FMS, on first use."""
    if name == "get_model":
        from ringexp.models.strategy import get_model

        return get_model
    if name == "generate":
        from ringexp.models.generation import generate

        return generate
    raise AttributeError(f"module {__name__} has no attribute {name}")
