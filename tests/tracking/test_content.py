"""Hashes of prompts and checkpoints: by content, and each large file is read once."""

import json
import os
import time
from pathlib import Path

import pytest

from ringexp.config import AttentionModelConfig, Config
from ringexp.errors import UserError
from ringexp.tracking import content
from ringexp.tracking.content import checkpoint_hash, content_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a checkpoint whose weights are large and have not changed for long enough."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * content.LARGE_BYTES)
    (folder / "README.md").write_text("about")
    return folder


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Return a list to which the name of every hashed file is added."""
    hashed: list[str] = []
    sha = content._sha256
    monkeypatch.setattr(content, "SETTLED_S", 0.0)
    monkeypatch.setattr(content, "_sha256", lambda path, of: (hashed.append(path.name), sha(path, of))[1])
    return hashed


def test_a_large_file_is_hashed_once(tmp_path, folder, read):
    time.sleep(0.05)
    first = checkpoint_hash(folder, tmp_path / "hashes.json", pytest.fail)
    assert sorted(read) == ["config.json", "model.safetensors"]
    read.clear()
    assert checkpoint_hash(folder, tmp_path / "hashes.json", pytest.fail) == first
    assert read == ["config.json"]


def test_a_file_that_was_changed_in_place_has_another_hash(tmp_path, folder, read):
    cache, weights = tmp_path / "hashes.json", folder / "model.safetensors"
    time.sleep(0.05)
    first, times = checkpoint_hash(folder, cache, pytest.fail), os.stat(weights)
    with weights.open("r+b") as file:
        file.write(b"W")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time as before
    assert checkpoint_hash(folder, cache, pytest.fail) != first


def test_a_file_that_has_just_changed_is_not_kept(tmp_path, folder):
    checkpoint_hash(folder, tmp_path / "hashes.json", pytest.fail)
    assert not (tmp_path / "hashes.json").exists()


def test_a_moved_checkpoint_is_the_same_and_another_name_is_not(tmp_path, folder):
    cache = tmp_path / "hashes.json"
    first = checkpoint_hash(folder, cache)
    moved = folder.rename(tmp_path / "moved")
    (moved / "README.md").write_text("about something else")
    assert checkpoint_hash(moved, cache) == first
    (moved / "model.safetensors").rename(moved / "other.safetensors")
    assert checkpoint_hash(moved, cache) != first


@pytest.mark.parametrize("damage", ["", "[]", '{"a": "b"}', '{"1:2:3:4:5": "short"}', '{"1:2:3:4:5": 5}'])
def test_a_damaged_cache_is_set_aside(tmp_path, folder, read, damage):
    cache, told = tmp_path / "hashes.json", []
    right = checkpoint_hash(folder, cache)
    cache.write_text(damage)
    assert checkpoint_hash(folder, cache, told.append) == right
    assert len(told) == 1
    assert (tmp_path / "hashes.json.damaged").read_text() == damage
    assert all(len(sha) == 64 for sha in json.loads(cache.read_text()).values())


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.checkpoint=.*nowhere cannot be read"):
        checkpoint_hash(tmp_path / "nowhere", tmp_path / "hashes.json")
    config = Config(model=AttentionModelConfig("tiny"), prompt_file=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"prompt_file=.*none cannot be read"):
        content_of(config)
