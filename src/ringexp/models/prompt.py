"""A run's prompts: real text by its checkpoint's tokenizer, or random ones of any lengths. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ringexp.config import Config, FmsModelConfig
from ringexp.errors import UserError
from ringexp.models.registry import model_of

DEFAULT_NEW_TOKENS = 32


def has_prompt(config: Config) -> bool:
    return bool(config.prompt_file or config.prompt_text)


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
            return _text_tokens(_text(config), config.prompt_lines, model_of(config.model).checkpoint)
        return max(_lengths(config), default=config.seq_len)
    except UserError:  # `with_prompt` says so
        return config.seq_len


@lru_cache(maxsize=64)
def _text_tokens(text: str, lines: bool, checkpoint: str | None) -> int:
    """Count the tokens of a text's longest prompt. Counts are cached: a sweep asks several times per run."""
    model = FmsModelConfig(checkpoint=checkpoint)
    return max(map(len, prompts(Config(model=model, prompt_text=text, prompt_lines=lines))))


def starts_of(config: Config) -> tuple[int, ...]:
    """Of each prompt, padded on the left, the first slot that is no padding; none if all are equal."""
    return tuple(config.seq_len - length for length in config.prompt_lengths or ())


def prompts(config: Config) -> list[list[int]]:
    """The token ids of each prompt. Raises UserError if there are none."""
    from ringexp.models.checkpoints.folder import load_tokenizer

    folder = model_of(config.model).checkpoint
    if folder is None:
        raise UserError(
            "prompt_file and prompt_text need the tokenizer of model=checkpoint model.checkpoint=DIR"
        )
    if config.prompt_file and config.prompt_text:
        raise UserError("give prompt_file or prompt_text, not both")
    text, tokenizer = _text(config), load_tokenizer(folder)
    texts = [line for line in _lines(text) if line.strip()] if config.prompt_lines else [text]
    found = [list(tokenizer(each)["input_ids"]) for each in texts]
    if not found or not all(found):
        raise UserError(f"{_source(config)} is empty; give text to run")
    return found


def _lines(text: str) -> list[str]:
    """Split at line ends alone; form feeds and Unicode's separators are part of a prompt."""
    return text.split("\n")


def _lengths(config: Config) -> list[int]:
    """Tokens of each prompt; none for random ones that are all of seq_len tokens."""
    given = config.prompt_lengths
    if has_prompt(config):
        if given is not None:
            raise UserError("prompt_lengths is for random prompts; a text has the length it has")
        return [len(ids) for ids in prompts(config)]
    if config.prompt_lines:
        raise UserError("prompt_lines=true needs prompt_file or prompt_text")
    if given is None:
        return []
    if not model_of(config.model).generates_text:
        raise UserError(f"prompt_lengths is for whole models; model={config.model.name} is one layer")
    if not given or min(given) < 1:
        raise UserError(f"prompt_lengths={given} must give every prompt at least 1 token")
    return given


def _source(config: Config) -> str:
    return f"prompt_file={config.prompt_file}" if config.prompt_file else "prompt_text"


def _text(config: Config) -> str:
    """Return the text of the prompts, UTF-8 whatever the locale, without a byte order mark.

    Raises UserError for a file that cannot be read, or that is no text.
    """
    text = _file_text(config.prompt_file) if config.prompt_file else config.prompt_text or ""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if "\0" in text:
        raise UserError(f"{_source(config)} has NUL bytes; it must be UTF-8 text")
    if not text:
        raise UserError(f"{_source(config)} is empty; give text to run")
    return text


def _file_text(name: str) -> str:
    path = Path(name)
    try:
        if path.exists() and not path.is_file():  # every rank reads it, so a pipe would not do either
            raise UserError(f"prompt_file={name} is no file; give a file of UTF-8 text")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"prompt_file={name} cannot be read: {why}") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompt_file={name} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}; "
            "convert it, such as by iconv -t UTF-8"
        ) from error
