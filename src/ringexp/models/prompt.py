"""Real text as a run's prompt, by the tokenizer of its checkpoint. Free of torch."""

from __future__ import annotations

from pathlib import Path

from ringexp.config import Config, FmsModelConfig
from ringexp.errors import UserError

DEFAULT_NEW_TOKENS = 32


def has_prompt(config: Config) -> bool:
    return bool(config.prompt_file or config.prompt_text)


def with_prompt(config: Config) -> Config:
    """The config with seq_len as long as its prompt, if it has one, and tokens to decode.

    Raises UserError for a prompt that cannot be read, or that does not go with the other settings.
    """
    if not has_prompt(config):
        return config
    length = len(prompt_ids(config))
    if config.seq_len not in (length, config.model.default_seq_len):
        raise UserError(f"seq_len={config.seq_len}, but the prompt has {length} tokens; leave seq_len out")
    if config.model.batch_size != 1:
        raise UserError(f"model.batch_size={config.model.batch_size} must be 1 with a prompt")
    config.seq_len = length
    config.decode_tokens = config.decode_tokens or DEFAULT_NEW_TOKENS
    return config


def prompt_ids(config: Config) -> list[int]:
    """The token ids of the prompt. Raises UserError if there are none."""
    from ringexp.models.checkpoint_folder import load_tokenizer

    model = config.model
    folder = model.checkpoint if isinstance(model, FmsModelConfig) else None
    if folder is None:
        raise UserError(
            "prompt_file and prompt_text need the tokenizer of model=checkpoint model.checkpoint=DIR"
        )
    if config.prompt_file and config.prompt_text:
        raise UserError("give prompt_file or prompt_text, not both")
    ids = load_tokenizer(folder)(_text(config))["input_ids"]
    if not ids:
        raise UserError("the prompt is empty")
    return list(ids)


def _text(config: Config) -> str:
    if not config.prompt_file:
        return config.prompt_text or ""
    try:
        return Path(config.prompt_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt_file={config.prompt_file} cannot be read: {error}") from error
