"""Weights come from the files that Hugging Face would load, whole and complete, or from none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ringexp.errors import UserError
from ringexp.models.checkpoints.folder import check_folder, load_tokenizer
from ringexp.models.checkpoints.load import load_checkpoint
from support.checkpoints import CHECKPOINTS, distance, save_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Return folders of checkpoints: in one file, in several with an index, and as torch.save writes them."""
    base = tmp_path_factory.mktemp("checkpoints")
    model = save_checkpoint(base / "whole", *CHECKPOINTS["llama"])
    model.save_pretrained(base / "sharded", max_shard_size="60KB")
    for name in ("whole", "sharded"):
        shutil.copytree(base / name, base / f"{name}-bin")
        _as_bin(base / f"{name}-bin")
    return {name: base / name for name in ("whole", "sharded", "whole-bin", "sharded-bin")}


@pytest.fixture
def folder(request, models, tmp_path) -> Path:
    """Return a copy of one of the checkpoints, which the test may damage."""
    return Path(shutil.copytree(models[request.param], tmp_path / "checkpoint"))


def _as_bin(folder: Path) -> None:
    """Write a folder's weights by torch.save instead."""
    for path in folder.glob("*.safetensors"):
        name = "pytorch_model.bin" if path.stem == "model" else f"pytorch_{path.stem}.bin"
        torch.save(load_file(path), folder / name)
        path.unlink()
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text())
        shards = {
            key: f"pytorch_{name.removesuffix('.safetensors')}.bin"
            for key, name in index["weight_map"].items()
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index | {"weight_map": shards}))
        (folder / INDEX).unlink()


def refused(folder: Path) -> str:
    """Return the one-line error, which the check before ranks start and the loader have to share."""
    messages = []
    for attempt in (
        lambda: check_folder(folder, 100),
        lambda: load_checkpoint(folder, torch.device("cpu"), torch.float32, 100),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert str(folder) in messages[0]
    return messages[0]


every = pytest.mark.parametrize("folder", ["whole", "sharded", "whole-bin", "sharded-bin"], indirect=True)
whole = pytest.mark.parametrize("folder", ["whole"], indirect=True)
sharded = pytest.mark.parametrize("folder", ["sharded"], indirect=True)


@every
def test_every_kind_of_file_gives_the_same_logits(folder):
    assert distance(folder) < 2e-6


@every
def test_stray_files_beside_the_weights_do_not_count(folder):
    noise = {"model.norm.weight": torch.full((64,), 1e3), "lm_head.weight": torch.randn(96, 64)}
    for name in ("a.safetensors", "zz.safetensors", "consolidated.safetensors", "model.fp16.safetensors"):
        save_file(noise, folder / name)
    torch.save({"args": 3}, folder / "training_args.bin")
    torch.save(noise, folder / "optimizer.bin")
    torch.save(noise, folder / "consolidated.00.pth")
    assert distance(folder) < 2e-6


@whole
def test_safetensors_are_taken_before_torch_files(folder):
    torch.save({"model.norm.weight": torch.zeros(64)}, folder / "pytorch_model.bin")
    assert distance(folder) < 2e-6


@sharded
def test_two_sets_of_weights_are_refused(folder):
    save_file({"model.norm.weight": torch.zeros(64)}, folder / "model.safetensors")
    assert "model.safetensors beside model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("folder", ["whole-bin"], indirect=True)
def test_an_old_torch_file_is_loaded(folder):
    path = folder / "pytorch_model.bin"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    assert distance(folder) < 2e-6


@pytest.mark.parametrize("folder", ["sharded", "sharded-bin"], indirect=True)
def test_a_missing_shard_is_refused(folder):
    shard = sorted(folder.glob("*-of-*"))[1]
    shard.unlink()
    message = refused(folder)
    assert f"of them are missing, such as {shard.name}" in message


@sharded
def test_a_tensor_that_the_index_names_must_be_there(folder):
    path = sorted(folder.glob("*-of-*"))[1]
    tensors = load_file(path)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, path)
    assert f"{INDEX} names {name}, which is in none of its files" in refused(folder)


@whole
def test_a_tensor_that_the_model_needs_must_be_there(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    message = refused(folder)
    assert "lack 1 of the 21 tensors" in message
    assert "model.layers.1.self_attn.v_proj.weight" in message


@whole
def test_more_layers_in_the_config_than_in_the_file_are_refused(folder):
    change_config(folder, num_hidden_layers=3)
    assert "lack 9 of the 30 tensors that config.json calls for, such as model.layers.2." in refused(folder)


@whole
def test_tensors_without_a_place_are_refused(folder):
    change_config(folder, num_hidden_layers=1)
    assert "have 9 tensors that the model of config.json has no place for" in refused(folder)


@whole
def test_a_tensor_of_another_shape_is_refused(folder):
    change_config(folder, vocab_size=95)
    message = refused(folder)
    assert "model.embed_tokens.weight is [96, 64], but config.json calls for [95, 64]" in message


@whole
def test_frequencies_of_the_rope_in_old_files_do_not_count(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in (0, 1)}
    save_file(tensors, folder / "model.safetensors")
    assert distance(folder) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@whole
def test_weights_of_quantized_types_are_refused(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    assert "lm_head.weight is of type" in refused(folder)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
@whole
def test_a_safetensors_file_that_is_cut_short_is_refused(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "fetch it again" in refused(folder)


@pytest.mark.parametrize("size", [0, 1, 200, -1])
@pytest.mark.parametrize("folder", ["whole-bin"], indirect=True)
def test_a_torch_file_that_is_cut_short_is_refused(folder, size):
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:size])
    assert "fetch it again" in refused(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16060556376\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(POINTER, "is a Git LFS pointer"), (b"\n<!DOCTYPE html>\n<html>", "is an HTML page"), (b"", "is empty")],
)
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("whole", "config.json"),
        ("whole", "model.safetensors"),
        ("whole-bin", "pytorch_model.bin"),
        ("sharded", INDEX),
    ],
    indirect=["folder"],
)
def test_what_a_failed_download_left_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    assert f"{name} {message}" in refused(folder)


@pytest.mark.parametrize("folder", ["whole-bin"], indirect=True)
def test_a_torch_file_with_code_is_not_run(folder, tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"model.norm.weight": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded as weights alone") as error:
        load_checkpoint(folder, torch.device("cpu"), torch.float32, 100)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "weight_map", [{}, None, [], {"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, {"a": ""}]
)
@sharded
def test_an_index_that_names_no_files_is_refused(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert INDEX in refused(folder)


@whole
def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights; it needs one of model.safetensors.index.json" in refused(folder)


@whole
def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert "has an adapter (adapter_config.json)" in refused(folder)
    (folder / "config.json").unlink()
    assert "has an adapter (adapter_config.json)" in refused(folder)


@pytest.mark.parametrize("text", ["[]", "{", "3", '"llama"', "\ufeff{}"])
@whole
def test_a_config_that_is_no_table_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("content", [POINTER, b"{}", b"", None])
@whole
def test_a_tokenizer_that_cannot_be_read_is_one_line(folder, content):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="has no tokenizer that can be read: ") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_folders_that_are_none_are_refused(tmp_path):
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert "has no config.json" in refused(tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file; give the folder" in refused(tmp_path / "file")


@sharded
def test_the_check_before_ranks_start_needs_no_torch(folder):
    code = (
        "import sys; from ringexp.models.checkpoints.folder import check_folder; "
        f"check_folder({str(folder)!r}, 100); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_hugging_face_loads_a_single_file_before_an_index(models, tmp_path):
    """Why the two beside each other are refused: the index would give other weights than Hugging Face has."""
    folder = Path(shutil.copytree(models["sharded"], tmp_path / "both"))
    tensors = load_file(models["whole"] / "model.safetensors")
    save_file({name: x + 1 for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(theirs.get_parameter("model.norm.weight"), tensors["model.norm.weight"] + 1)
