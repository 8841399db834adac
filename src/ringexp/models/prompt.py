"""Real text as prompts: a file or a setting, by the tokenizer of a checkpoint. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ringexp.errors import UserError
from ringexp.models.checkpoints.folder import load_tokenizer


@dataclass(frozen=True)
class PromptText:
    """The text of a run's prompts.

    Attributes:
        file: the setting prompt_file; None without one.
        text: the setting prompt_text; None without one.
        lines: the setting prompt_lines: each line is a prompt of its own.
    """

    file: str | None = None
    text: str | None = None
    lines: bool = False

    def __bool__(self) -> bool:
        return bool(self.file or self.text)

    def token_ids(self, checkpoint: str | None) -> list[list[int]]:
        """Return the token ids of each prompt.

        Args:
            checkpoint: the folder of the tokenizer.

        Raises:
            UserError: there is no checkpoint, two texts, or a text that is empty or cannot be read.
        """
        if checkpoint is None:
            raise UserError(
                "prompt_file and prompt_text need the tokenizer of model=checkpoint model.checkpoint=DIR"
            )
        if self.file and self.text:
            raise UserError("give prompt_file or prompt_text, not both")
        text, tokenizer = self.read(), load_tokenizer(checkpoint)
        texts = [line for line in _split_lines(text) if line.strip()] if self.lines else [text]
        ids_of_prompts = [list(tokenizer(prompt)["input_ids"]) for prompt in texts]
        if not ids_of_prompts or not all(ids_of_prompts):
            raise UserError(f"{self._setting} is empty; give text to run")
        return ids_of_prompts

    def longest(self, checkpoint: str | None) -> int:
        """Count the tokens of the longest prompt. Raises UserError if the text cannot be read."""
        return _longest(self.read(), self.lines, checkpoint)

    def read(self) -> str:
        """Return the text, UTF-8 whatever the locale, without a byte order mark.

        Raises UserError for a file that cannot be read, or that is no text.
        """
        text = _file_text(self.file) if self.file else self.text or ""
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        if "\0" in text:
            raise UserError(f"{self._setting} has NUL bytes; it must be UTF-8 text")
        if not text:
            raise UserError(f"{self._setting} is empty; give text to run")
        return text

    @property
    def _setting(self) -> str:
        """Name the setting that gives the text, for messages."""
        return f"prompt_file={self.file}" if self.file else "prompt_text"


@lru_cache(maxsize=64)
def _longest(text: str, lines: bool, checkpoint: str | None) -> int:
    """Count the tokens of a text's longest prompt. Counts are cached: a sweep asks several times per run."""
    return max(map(len, PromptText(None, text, lines).token_ids(checkpoint)))


def _split_lines(text: str) -> list[str]:
    """Split at line ends alone; form feeds and Unicode's separators are part of a prompt."""
    return text.split("\n")


def _file_text(name: str) -> str:
    """Return the text in a UTF-8 file. Raises UserError for anything else."""
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
