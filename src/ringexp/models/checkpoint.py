"""Checkpoints: a Hugging Face folder as an FMS model, with what FMS's own loader loses put right.

FMS reads weights; from transformers 5 it reads no rope scaling, of Qwen 3 not the rope's base, and rounds the
feed-forward width of Qwen 3 and Mistral up. Here these settings are passed on. Mixtral's weights are laid out
as FMS has them, which FMS itself cannot do. What FMS cannot compute is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fms.models import get_model as fms_get_model
from torch import nn

from ringexp.errors import UserError
from ringexp.models.checkpoint_folder import read_config


@dataclass(frozen=True)
class _Family:
    """How FMS calls the rope's base, and whether it can scale the rope."""

    architecture: str
    theta: str
    scales: bool


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", "rope_theta", scales=True),
    "GraniteForCausalLM": _Family("granite", "rope_theta", scales=False),
    "Qwen3ForCausalLM": _Family("qwen3", "rope_theta", scales=True),
    "MistralForCausalLM": _Family("mistral", "rope_base", scales=True),
    "MixtralForCausalLM": _Family("mixtral", "rope_base", scales=False),
}


def load_checkpoint(folder: str | Path, device: torch.device, dtype: torch.dtype, seq_len: int) -> nn.Module:
    """The FMS model of a folder that `save_pretrained` wrote, in `dtype`, for positions up to `seq_len`.

    Raises UserError for a folder that is none, and for a family or setting that FMS does not compute.
    """
    config = read_config(folder)
    name = next(iter(config.get("architectures") or []), "")
    if name not in _FAMILIES:
        raise UserError(f"{folder} has a {name or 'model of no name'}; use one of {', '.join(_FAMILIES)}")
    family = _FAMILIES[name]
    settings = _settings(folder, config, family, seq_len)
    what = {
        "device_type": device.type,
        "data_type": dtype,
        "distributed_strategy": "none",
        "max_expected_seq_len": seq_len,
        **settings,
    }
    if family.architecture == "mixtral":
        model = fms_get_model("mixtral", "8x7b", **_mixtral_settings(config), **what)
        _fill_mixtral(model, Path(folder))
        return model
    return fms_get_model("hf_pretrained", model_path=str(folder), override_hf_pretrained_config=True, **what)


def _settings(folder: str | Path, config: dict[str, Any], family: _Family, seq_len: int) -> dict[str, Any]:
    """What FMS has to be told."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else {})
    settings: dict[str, Any] = {}
    theta = rope.get("rope_theta") or config.get("rope_theta")
    if theta:
        settings[family.theta] = theta
    kind = scaling.get("rope_type", scaling.get("type"))
    if scaling and not (family.scales and kind == "llama3"):
        raise UserError(
            f"{folder} scales its rope ({kind}), which FMS's {family.architecture} does not; "
            "rope scaling is known for llama3 alone"
        )
    if scaling:
        settings["rope_scaling"] = {**scaling, "rope_type": kind}
    if family.architecture in ("qwen3", "mistral"):
        settings["multiple_of"] = 1
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True) and window < seq_len:
        raise UserError(
            f"{folder} attends to a sliding window of {window} tokens, which FMS does not compute; "
            f"use a context of up to {window}"
        )
    heads = config["hidden_size"] // config["num_attention_heads"]
    if family.architecture in ("llama", "mixtral") and (config.get("head_dim") or heads) != heads:
        raise UserError(
            f"{folder} has heads of {config['head_dim']}; FMS's {family.architecture} has hidden_size / "
            f"num_attention_heads = {heads}"
        )
    return settings


def _mixtral_settings(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "src_vocab_size": config["vocab_size"],
        "dim": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "nheads": config["num_attention_heads"],
        "kvheads": config["num_key_value_heads"],
        "nlayers": config["num_hidden_layers"],
        "norm_eps": config["rms_norm_eps"],
        "num_experts": config["num_local_experts"],
        "top_k_experts": config["num_experts_per_tok"],
    }


def _fill_mixtral(model: nn.Module, folder: Path) -> None:
    """Copy the weights tensor by tensor, so that no second model is ever in memory."""
    config: Any = model.config
    sizes = config.nheads, config.kvheads, config.num_experts
    with ExitStack() as stack, torch.no_grad():
        read = _reader(folder, stack)
        for name, parameter in model.named_parameters():
            parameter.copy_(_mixtral_tensor(name, read, *sizes))


def _mixtral_tensor(
    name: str, read: Callable[[str], torch.Tensor], heads: int, key_heads: int, experts: int
) -> torch.Tensor:
    """FMS's parameter out of Hugging Face's."""
    outer = {
        "base_model.embedding.weight": "model.embed_tokens.weight",
        "base_model.dec_norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }
    if name in outer:
        return read(outer[name])
    match = re.fullmatch(r"base_model\.layers\.(\d+)\.(.+)", name)
    assert match, name
    layer, part = f"model.layers.{match[1]}.", match[2]
    if part == "attn.in_proj.qkv_fused.weight":
        query, key, value = (read(f"{layer}self_attn.{x}_proj.weight") for x in "qkv")
        return torch.cat((_interleaved(query, heads), _interleaved(key, key_heads), value))
    moe = f"{layer}block_sparse_moe."
    if part == "ff_sub_layer.cond_ffn.w13":
        gates, ups = ([read(f"{moe}experts.{e}.{w}.weight") for e in range(experts)] for w in ("w1", "w3"))
        return torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
    if part == "ff_sub_layer.cond_ffn.w2":
        return torch.stack([read(f"{moe}experts.{e}.w2.weight") for e in range(experts)])
    inner = {
        "attn.dense.weight": "self_attn.o_proj.weight",
        "ln.weight": "input_layernorm.weight",
        "ff_ln.weight": "post_attention_layernorm.weight",
        "ff_sub_layer.gate.weight": "block_sparse_moe.gate.weight",
    }
    return read(layer + inner[part])


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection, from Hugging Face's halves of a head to FMS's neighbouring pairs."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _reader(folder: Path, stack: ExitStack) -> Callable[[str], torch.Tensor]:
    """Reads one tensor by name from the folder's safetensors files, which stay open until the stack ends."""
    from safetensors import safe_open

    files: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = stack.enter_context(safe_open(str(path), "pt"))
        files |= dict.fromkeys(file.keys(), file)

    def read(name: str) -> torch.Tensor:
        if name not in files:
            raise UserError(f"{folder} has no {name} in its safetensors files")
        return files[name].get_tensor(name)

    return read
