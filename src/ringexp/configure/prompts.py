"""A run's prompts: real text by its checkpoint's tokenizer, or random ones of any lengths. Free of torch."""

from __future__ import annotations

from dataclasses import replace

from ringexp.config import Config
from ringexp.errors import UserError
from ringexp.models.prompt import PromptText
from ringexp.models.registry import model_of

DEFAULT_NEW_TOKENS = 32


def has_prompt(config: Config) -> bool:
    """Tell whether a run has real text."""
    return bool(_text_of(config))


def with_prompt(config: Config) -> Config:
    """Return the config with the length and number of its prompts, and for real ones tokens to decode.

    A config without prompts is returned as it is. prompt_lengths is then set only if lengths differ. Raises
    UserError for a prompt that cannot be read, or that does not go with the other settings.
    """
    lengths = _lengths(config)
    if not lengths:
        return config
    longest, count = max(lengths), len(lengths)
    if config.seq_len not in (longest, config.model.default_seq_len):
        prompt = "the longest prompt" if count > 1 else "the prompt"
        raise UserError(f"seq_len={config.seq_len}, but {prompt} has {longest} tokens; leave seq_len out")
    if config.model.batch_size not in (1, count):
        raise UserError(
            f"model.batch_size={config.model.batch_size}, but the number of prompts is {count}; leave it out"
        )
    return replace(
        config,
        model=replace(config.model, batch_size=count),
        seq_len=longest,
        prompt_lengths=lengths if min(lengths) < longest else None,
        decode_tokens=config.decode_tokens or (DEFAULT_NEW_TOKENS if has_prompt(config) else 0),
    )


def tokens_of(config: Config) -> int:
    """Count the longest prompt's tokens. Return seq_len if the run has no prompt that can be read."""
    try:
        if has_prompt(config):
            return _text_of(config).longest(model_of(config.model).checkpoint)
        return max(_lengths(config), default=config.seq_len)
    except UserError:  # `with_prompt` says so
        return config.seq_len


def starts_of(config: Config) -> tuple[int, ...]:
    """Return the first slot of each left-padded prompt that is no padding; () if all lengths are equal."""
    return tuple(config.seq_len - length for length in config.prompt_lengths or ())


def prompts(config: Config) -> list[list[int]]:
    """Return the token ids of each prompt. Raises UserError if there is no text that can be read."""
    return _text_of(config).token_ids(model_of(config.model).checkpoint)


def _text_of(config: Config) -> PromptText:
    return PromptText(config.prompt_file, config.prompt_text, config.prompt_lines)


def _lengths(config: Config) -> list[int]:
    """Return the tokens of each prompt; an empty list for random prompts of seq_len tokens each."""
    lengths = config.prompt_lengths
    if has_prompt(config):
        if lengths is not None:
            raise UserError("prompt_lengths is for random prompts; a text has the length it has")
        return [len(ids) for ids in prompts(config)]
    if config.prompt_lines:
        raise UserError("prompt_lines=true needs prompt_file or prompt_text")
    if lengths is None:
        return []
    if not model_of(config.model).generates_text:
        raise UserError(f"prompt_lengths is for whole models; model={config.model.name} is one layer")
    if not lengths or min(lengths) < 1:
        raise UserError(f"prompt_lengths={lengths} must give every prompt at least 1 token")
    return lengths
