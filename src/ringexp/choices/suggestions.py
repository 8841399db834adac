"""Suggestions in error messages: ringexp's word for one that users of other tools know."""

from __future__ import annotations

from collections.abc import Iterable

from ringexp.choices.registry import nearest
from ringexp.choices.tables import KERNELS, LAYOUTS, PARTITIONERS, THROTTLES, TRANSPORTS

ALIASES = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "cuda:0": "cuda",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "wandb": "online",
    "off": "disabled",
    "none": "disabled",
    "llama3": "llama3_8b",
    "llama": "llama3_8b",
    "mixtral": "mixtral_8x7b",
    "mistral": "mistral_7b",
    "qwen3": "qwen3_8b",
    "granite": "granite_8b",
    "submitit_slurm": "slurm",
    "local": "shared_ranks",
    "queries": "tokens",
    "shard": "split",
}
"""Other words for values that are no choices of a table; choices state their own."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the end of an error message that suggests one of the names for a wrong word, or ""."""
    aliases = dict(ALIASES)
    for table in (KERNELS, TRANSPORTS, THROTTLES, PARTITIONERS, LAYOUTS):
        aliases |= table.aliases
    return nearest(word, names, aliases)
