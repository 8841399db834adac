"""Write files in one step, so that readers never see half of one and no link redirects a write."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PRIVATE = 0o600
"""The mode of a file that only its owner may read."""


def write_atomically(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replace a file in one step: readers see the old content or the new one, never half of it.

    Args:
        path: the file; its folder is made if it is missing.
        content: what the file then holds.
        mode: the file's mode, from which the umask is taken.
    """
    write_together({path: content}, mode)


def write_together(contents: Mapping[Path, str | bytes], mode: int = 0o666) -> None:
    """Write several files as `write_atomically` does, or none of them if one does not fit the disk."""
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # A random name, which nobody can have linked to another file.
            drafts[path] = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            _write_new(drafts[path], content if isinstance(content, bytes) else content.encode(), mode)
        for path, draft in drafts.items():
            os.replace(draft, path)
    except BaseException:
        for draft in drafts.values():
            with suppress(OSError):
                draft.unlink()
        raise


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a new file and flush it to the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def no_link(path: str, flags: int) -> int:
    """Open a file; raise OSError if its name is a symbolic link. Use it as the `opener` of `open`."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
