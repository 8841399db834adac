"""What is in a checkpoint's folder beside its weights. Free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ringexp.errors import UserError


def read_config(folder: str | Path) -> dict[str, Any]:
    """The folder's config.json. Raises UserError if there is none."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.checkpoint={folder} has no config.json that can be read: {error}") from error


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's tokenizer, a Hugging Face one. Raises UserError if it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model.checkpoint={folder} has no tokenizer that can be read: {error}") from error
