"""Checkpoints of Hugging Face's hub, in its local cache. Free of torch."""

from __future__ import annotations

import re
from pathlib import Path

from ringexp.errors import UserError
from ringexp.models.checkpoints.files import INDEX, SAFETENSORS, TORCH, WHOLE, shards_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SMALL = ("config.json", "adapter_config.json", "tokenizer*", "special_tokens_map.json", "*.index.json")
"""Patterns of the small files that are fetched beside the weights."""


def local_folder(source: str | Path) -> Path:
    """Return the folder of a checkpoint: `source` if it is one, else the snapshot of the hub id `source`.

    Of a hub id only the files that Hugging Face would load are fetched. Without a network the snapshot that
    was fetched last is taken.

    Raises:
        UserError: no such folder, and a hub id that cannot be fetched and is not in the cache.
    """
    folder = Path(source).expanduser()
    if folder.exists():
        return folder
    name = str(source)
    if not HUB_ID.fullmatch(name):
        raise UserError(f"checkpoint {source} is neither a folder nor an id of Hugging Face's hub")
    snapshot = _fetch(name, SMALL)
    for kind in (SAFETENSORS, TORCH):
        index = snapshot / INDEX[kind]
        wanted = sorted(shards_of(index)) if index.is_file() else [WHOLE[kind]]
        if all((snapshot / file).is_file() for file in wanted):
            return snapshot
        snapshot = _fetch(name, (*SMALL, WHOLE[kind], *wanted))
        if all((snapshot / file).is_file() for file in wanted):
            return snapshot
    return snapshot


def _fetch(name: str, patterns: tuple[str, ...]) -> Path:
    """Return the snapshot of a hub id with the files that match the patterns, as far as they can be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(
            f"checkpoint {name} is no folder here, and cannot be fetched from Hugging Face's hub: {reason}"
        ) from error
