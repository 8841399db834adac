"""A checkpoint's folder: its config.json, its tokenizer, and all that can be checked without a model.

Free of torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ringexp.errors import UserError
from ringexp.models.checkpoints.config import CheckpointConfig, parse_config
from ringexp.models.checkpoints.files import WeightFiles, find_weights, read_json
from ringexp.models.checkpoints.tensors import check_tensors

ADAPTER = "adapter_config.json"


def check_folder(folder: str | Path, seq_len: int) -> None:
    """Check all of a checkpoint that can be known without building its model.

    Args:
        folder: what `save_pretrained` wrote, or a snapshot of Hugging Face's hub.
        seq_len: the longest context that is to be computed, in tokens: prompt and new tokens.

    Raises:
        UserError: the folder or its config.json is missing; the family or a setting is not computed as
            Hugging Face computes it; weights are missing, damaged or quantized, or not those of the config.
    """
    open_folder(folder, seq_len)


def open_folder(folder: str | Path, seq_len: int | None = None) -> tuple[CheckpointConfig, WeightFiles]:
    """Return a checkpoint's settings and weight files, checked as `check_folder` does.

    Without seq_len the context may be as long as the model can.
    """
    config = parse_config(folder, read_config(folder))
    if seq_len is not None:
        config.check_length(folder, seq_len)
    files = find_weights(Path(folder))
    if files.shapes is not None:
        check_tensors(config, files.folder, files.shapes)
    return config, files


def read_config(folder: str | Path) -> dict[str, object]:
    """Return the folder's config.json. Raises UserError if there is none."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"checkpoint {folder} has no config.json: there is no such folder")
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder} is a file; give the folder that has its config.json")
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"checkpoint {folder} has an adapter ({ADAPTER}), which is not computed; merge it into its "
            "model, or move it away to run the model without it"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"checkpoint {folder} has no config.json")
    return read_json(folder / "config.json")


def load_tokenizer(folder: str | Path) -> Any:
    """Return the folder's tokenizer, a Hugging Face one. Raises UserError if it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a damaged file makes the tokenizers library raise bare exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"checkpoint {folder} has no tokenizer that can be read: {reason}") from error


def end_tokens(folder: str, of_tokenizer: int | None) -> set[int]:
    """Return the tokens that end a text: the tokenizer's, and those of the checkpoint's generation settings.

    As for Hugging Face, a folder without a generation_config.json has them in its config.json. A file that
    cannot be read names none.

    Args:
        folder: the checkpoint.
        of_tokenizer: the tokenizer's own; None if it has none.
    """
    ends = set() if of_tokenizer is None else {of_tokenizer}
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        if path.is_file():
            try:
                listed = json.loads(path.read_bytes())["eos_token_id"]
            except (OSError, ValueError, KeyError, TypeError):
                listed = None
            return ends | {x for x in (listed if isinstance(listed, list) else [listed]) if type(x) is int}
    return ends
