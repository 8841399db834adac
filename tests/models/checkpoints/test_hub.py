"""A hub id is the snapshot in the local cache; no network here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ringexp.errors import UserError
from ringexp.models.checkpoints.hub import local_folder
from ringexp.models.checkpoints.load import from_pretrained
from support.checkpoints import CHECKPOINTS, save_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Set the hub's client offline with an empty cache. Return the folder of the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache: Path, name: str) -> Path:
    """Return a checkpoint in the cache, laid out as the hub's client does."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    save_checkpoint(repo / "snapshots" / COMMIT, *CHECKPOINTS["llama"])
    return repo / "snapshots" / COMMIT


def test_a_hub_id_is_loaded_from_the_cache(cache):
    snapshot = cached(cache, "some-one/tiny_llama.v1")
    assert local_folder("some-one/tiny_llama.v1").resolve() == snapshot.resolve()
    model = from_pretrained("some-one/tiny_llama.v1")
    assert torch.equal(
        model.get_parameter("head.weight"),
        from_pretrained(model_path=snapshot).get_parameter("head.weight"),
    )


def test_a_folder_wins_over_a_hub_id(cache, tmp_path, monkeypatch):
    cached(cache, "some-one/tiny")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cache / "models--some-one--tiny" / "snapshots" / COMMIT, tmp_path / "some-one" / "tiny")
    assert local_folder("some-one/tiny") == Path("some-one/tiny")


def test_an_incomplete_snapshot_is_refused(cache):
    (cached(cache, "some-one/tiny") / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        from_pretrained("some-one/tiny")


@pytest.mark.parametrize("name", ["some-one/nothing", "nothing", "checkpoints/llama"])
def test_what_cannot_be_fetched_is_one_line(cache, name):
    with pytest.raises(UserError) as error:
        local_folder(name)
    assert f"checkpoint {name} is no folder here, and cannot be fetched" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["/nowhere/at all", "../up", "a/b/c", "~nobody", ""])
def test_what_is_no_id_is_not_asked_for(cache, name):
    with pytest.raises(UserError, match=r"neither a folder nor an id|no config.json"):
        from_pretrained(name)
