"""The files that hold a checkpoint's weights, chosen as Hugging Face chooses them, and checked.

Free of torch.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ringexp.errors import UserError

SAFETENSORS, TORCH = "safetensors", "torch"
WHOLE = {SAFETENSORS: "model.safetensors", TORCH: "pytorch_model.bin"}
INDEX = {SAFETENSORS: "model.safetensors.index.json", TORCH: "pytorch_model.bin.index.json"}

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HTML = (b"<!doctype html", b"<html")
PICKLE = b"\x80\x02"
"""The first bytes of a file of older torch.save, which did not write zip files."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights in safetensors files that can be computed with as they are."""


@dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint.

    Attributes:
        folder: the checkpoint.
        kind: SAFETENSORS or TORCH.
        paths: the files, in order.
        shapes: the shape of each tensor, by name; None for TORCH, whose files have to be loaded for it.
        file_of: the file of each tensor; empty for TORCH.
        named: tensors that an index lists; they have to be in its files.
    """

    folder: Path
    kind: str
    paths: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]] | None
    file_of: Mapping[str, Path]
    named: frozenset[str]


def find_weights(folder: Path) -> WeightFiles:
    """Find and check the weight files of a folder; other files beside them do not count.

    Raises UserError if there are none, if one that an index names is missing, and if one is damaged.
    """
    for kind in (SAFETENSORS, TORCH):
        whole, index = folder / WHOLE[kind], folder / INDEX[kind]
        if index.is_file():
            shard_of = _read_index(index)
            paths = tuple(folder / name for name in sorted(set(shard_of.values())))
            if whole.is_file() and whole not in paths:
                raise UserError(
                    f"checkpoint {folder} has {whole.name} beside {index.name}, which names other files; "
                    "remove the one that is not meant"
                )
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise UserError(
                    f"checkpoint {folder}: {index.name} names {len(paths)} files, and {len(missing)} of them "
                    f"are missing, such as {missing[0]}; fetch them"
                )
            return _checked(folder, kind, paths, frozenset(shard_of))
        if whole.is_file():
            return _checked(folder, kind, (whole,), frozenset())
    names = ", ".join((*INDEX.values(), *WHOLE.values()))
    raise UserError(f"checkpoint {folder} has no weights; it needs one of {names}")


def why_no_content(path: Path) -> str | None:
    """Say what a failed download left in place of a file, or why it cannot be read; None if all is well."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if start.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.lstrip().lower().startswith(HTML):
        return "is an HTML page, not the file itself; fetch it again"
    return "is empty; fetch it again" if not start else None


def read_json(path: Path) -> dict[str, object]:
    """Read a table from a JSON file. Raises UserError if it cannot be read or is something else."""
    try:
        wrong = why_no_content(path)
        if wrong:
            raise UserError(f"{path} {wrong}")
        table = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {_one_line(error)}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path} has to hold a table, not {type(table).__name__}")
    return table


def shards_of(index: Path) -> set[str]:
    """Return the names of the files that an index names. Raises UserError for one that cannot be read."""
    return set(_read_index(index).values())


def _read_index(index: Path) -> dict[str, str]:
    """Return the shard of each tensor, as an index names them."""
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise UserError(f"{index} has no weight_map, which says the file of each tensor")
    for name in shard_of.values():
        path = PurePosixPath(name) if isinstance(name, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or not path.name:
            raise UserError(f"{index} names {json.dumps(name)}, which is no file of the folder")
    return shard_of


def _checked(folder: Path, kind: str, paths: tuple[Path, ...], named: frozenset[str]) -> WeightFiles:
    for path in paths:
        wrong = why_no_content(path)
        if wrong:
            raise UserError(f"{path} {wrong}")
    if kind == TORCH:
        for path in paths:
            _check_torch(path)
        return WeightFiles(folder, kind, paths, None, {}, named)
    shapes: dict[str, tuple[int, ...]] = {}
    file_of: dict[str, Path] = {}
    for path in paths:
        for name, dtype, shape in _tensors(path):
            if dtype not in FLOATS:
                raise UserError(f"{path}: {name} is of type {dtype}; weights have to be {', '.join(FLOATS)}")
            if name in file_of:
                raise UserError(f"checkpoint {folder} has {name} in {file_of[name].name} and in {path.name}")
            shapes[name], file_of[name] = shape, path
    check_named(folder, kind, named, frozenset(shapes))
    return WeightFiles(folder, kind, paths, shapes, file_of, named)


def check_named(folder: Path, kind: str, named: frozenset[str], names: frozenset[str]) -> None:
    """Raise UserError if a tensor that the index names is in none of its files."""
    missing = sorted(named - names)
    if missing:
        raise UserError(
            f"checkpoint {folder}: {INDEX[kind]} names {missing[0]}, which is in none of its files "
            f"({len(missing)} such tensors); fetch them again"
        )


def _tensors(path: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, type and shape of each tensor of a safetensors file that is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as file:
            for name in file.keys():  # noqa: SIM118, the file cannot be iterated over
                part = file.get_slice(name)
                yield name, part.get_dtype(), tuple(part.get_shape())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short: {_one_line(error)}; fetch it again") from error


def _check_torch(path: Path) -> None:
    """Raise UserError for a file that torch.save did not write, or that is cut short."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == PICKLE or zipfile.is_zipfile(path):
        return
    reason = "is damaged or cut short" if start == b"PK" else "was not written by torch.save"
    raise UserError(f"{path} {reason}; fetch it again")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
