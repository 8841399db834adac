"""Hashes of the contents of a run's prompt and checkpoint, by which a changed file is recognised.

A file that moves keeps its hash; a file that changes does not.

Hashing a large checkpoint takes seconds, so the hash of a large file is kept in outputs/hashes.json, under
the file's device, inode, size and times, which any change to the file changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ringexp.config import Config
from ringexp.errors import UserError
from ringexp.models.registry import model_of
from ringexp.stored import JsonValue, Warn, an_object, digest, read_checked, to_stderr, write_json

OF_A_CHECKPOINT = (".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt", ".jinja", ".tiktoken")
"""The ends of the names of a checkpoint's files: its configuration, its tokenizer and its weights."""

LARGE_BYTES = 1 << 20
"""The smallest size in bytes of a file whose hash is kept in the cache."""

SETTLED_S = 2.0
"""The hash of a file that changed more recently is not kept: the file may change again without a new time."""

THREADS = 8
CHUNK_BYTES = 1 << 22


def content_of(config: Config, warn: Warn = to_stderr) -> dict[str, str]:
    """Return hashes of the prompt and of the checkpoint of a run, as far as it has them.

    Raises UserError if one cannot be read.
    """
    hashes = {}
    if config.prompt_file:
        hashes["prompt"] = _sha256(Path(config.prompt_file), "prompt_file")
    elif config.prompt_text:
        hashes["prompt"] = hashlib.sha256(config.prompt_text.encode("utf-8", "surrogatepass")).hexdigest()
    folder = model_of(config.model).checkpoint
    if folder:
        cache = Path(config.output_root) / "hashes.json"
        hashes["checkpoint"] = checkpoint_hash(Path(folder), cache, warn)
    return hashes


def checkpoint_hash(folder: Path, cache: Path, warn: Warn = to_stderr) -> str:
    """Hash the configuration, tokenizer and weights in `folder`, by their names and contents.

    Args:
        folder: a Hugging Face folder; its subfolders do not count.
        cache: the file that keeps hashes of large files from one call to the next.
        warn: is told if the cache is damaged.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in OF_A_CHECKPOINT and path.is_file())
    except OSError as error:
        raise UserError(f"model.checkpoint={folder} cannot be read: {error.strerror}") from error
    cached_hashes = read_checked(cache, _cached, warn) or {}
    with ThreadPoolExecutor(THREADS) as threads:
        hashes = list(threads.map(lambda path: _hash_of(path, cached_hashes), paths))
    new = {key: sha for sha, key in hashes if key and key not in cached_hashes}
    if new:
        with suppress(OSError):  # it is only a cache
            write_json(cache, cached_hashes | new)
    return digest([[path.name, sha] for path, (sha, _) in zip(paths, hashes, strict=True)])


def _hash_of(path: Path, cached_hashes: dict[str, str]) -> tuple[str, str | None]:
    """Return the hash of a file, and the key under which the hash may be kept, or None."""
    before = _key(path)
    if before in cached_hashes:
        return cached_hashes[before], before
    sha = _sha256(path, "model.checkpoint")
    settled = time.time() - max(os.stat(path).st_mtime, os.stat(path).st_ctime) > SETTLED_S
    large = os.stat(path).st_size >= LARGE_BYTES
    return sha, before if large and settled and _key(path) == before else None


def _key(path: Path) -> str:
    status = os.stat(path)
    fields: Sequence[int] = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return ":".join(map(str, fields))


def _sha256(path: Path, setting: str) -> str:
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                sha.update(chunk)
    except OSError as error:
        raise UserError(f"{setting}={path} cannot be read: {error.strerror}") from error
    return sha.hexdigest()


def _cached(value: JsonValue) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for key, sha in an_object(value, "the cache of hashes").items():
        if not re.fullmatch(r"\d+(:\d+){4}", key):
            raise ValueError(f"{key!r} is no key")
        if not isinstance(sha, str) or not re.fullmatch(r"[0-9a-f]{64}", sha):
            raise ValueError(f"{sha!r} is no hash")
        hashes[key] = sha
    return hashes
