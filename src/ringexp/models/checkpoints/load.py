"""Checkpoints: a folder or hub id of Hugging Face as an FMS model that computes what Hugging Face's computes.

The settings are checked by `config`, the files by `files`. FMS's model is built without
memory of its own, and every parameter is filled from the file's tensors as `tensors.parameters_of` says.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Protocol, TypedDict, cast

import torch
from fms.distributed import local_rank
from fms.models.granite import Granite, GraniteConfig
from fms.models.llama import LLaMA, LLaMAConfig
from fms.models.mistral import Mistral, MistralConfig
from fms.models.mixtral import Mixtral, MixtralConfig
from fms.models.qwen3 import Qwen3, Qwen3Config
from torch import nn

from ringexp.errors import UserError
from ringexp.models.checkpoints.config import CheckpointConfig
from ringexp.models.checkpoints.files import TORCH, WeightFiles, check_named
from ringexp.models.checkpoints.folder import open_folder
from ringexp.models.checkpoints.hub import local_folder
from ringexp.models.checkpoints.tensors import Parameter, check_tensors, parameters_of

EMBEDDING = "base_model.embedding.weight"
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Types that weights may have, in the file and in memory."""

FMS_ARGUMENTS: Mapping[str, tuple[object, ...]] = {
    "source": (None, "hf"),
    "checkpoint_sharding": (None,),
    "trust_remote_code": (False, True),
    "override_hf_pretrained_config": (False, True),
    "linear_config": (None,),
    "fused_weights": (True,),
    "vision_only": (False,),
}
"""Other arguments of FMS's `get_model` that may be given, with the values that change nothing here."""


def from_pretrained(
    variant: str | Path | None = None,
    *,
    model_path: str | Path | None = None,
    device_type: str = "cpu",
    data_type: str | torch.dtype | None = None,
    max_expected_seq_len: int | None = None,
    **others: object,
) -> nn.Module:
    """Load a checkpoint by the arguments of FMS's `get_model("hf_pretrained", ...)`.

    Args:
        variant: folder or hub id; either this or model_path.
        model_path: folder or hub id.
        device_type: "cpu" or "cuda"; of several GPUs the one of LOCAL_RANK.
        data_type: of the weights, a dtype or its name; float32 if None.
        max_expected_seq_len: the longest context, in tokens; if None, the one that the model was made for, or
            its sliding window if that is shorter.
        others: arguments of FMS that change nothing (`FMS_ARGUMENTS`).

    Returns:
        FMS's model, with all weights on this rank's device.

    Raises:
        UserError: an argument that is not honoured, or a checkpoint that is not, see `check_folder`.
    """
    if (variant is None) == (model_path is None):
        raise UserError('"hf_pretrained" needs either variant or model_path, a folder or a hub id')
    for name, value in others.items():
        if name not in FMS_ARGUMENTS:
            raise UserError(
                f'{name}={value} does not go with "hf_pretrained", whose config.json says what the model is; '
                "leave it out"
            )
        if value not in FMS_ARGUMENTS[name]:
            allowed = " or ".join(map(str, FMS_ARGUMENTS[name]))
            raise UserError(f'{name}={value} does not go with "hf_pretrained" on a ring; use {allowed}')
    index = local_rank() if device_type == "cuda" else None
    device = torch.device(device_type) if index is None else torch.device(device_type, index)
    source = variant if variant is not None else model_path
    assert source is not None
    return load_checkpoint(local_folder(source), device, _dtype(data_type), max_expected_seq_len)


def load_checkpoint(
    folder: str | Path, device: torch.device, dtype: torch.dtype, seq_len: int | None
) -> nn.Module:
    """Load a folder that `save_pretrained` wrote as FMS's model.

    Args:
        folder: the checkpoint.
        device: where the weights go.
        dtype: of the weights.
        seq_len: the longest context, in tokens; None for the longest that the model can.

    Raises:
        UserError: what `check_folder` says, and weights that cannot be read.
    """
    config, files = open_folder(folder, seq_len)
    model = _empty_model(config, config.longest if seq_len is None else seq_len)
    with ExitStack() as stack, torch.no_grad():
        names, read = _reader(config, files, stack)
        parameters = {parameter.name: parameter for parameter in parameters_of(config, names)}
        assert parameters.keys() == dict(model.named_parameters()).keys(), "a parameter has no tensors"
        _fill(model, parameters, read, device, dtype)
        if config.tied:
            _tie(model)
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers())), "a parameter was not filled"
    base = cast("_BaseModel", model.get_submodule("base_model"))
    base.post_init()  # the rope's table, where the weights are
    return model.eval()


class _BaseModel(Protocol):
    """The layers of one of FMS's models, without its head."""

    def post_init(self) -> None: ...


class _Sizes(TypedDict):
    """The settings that all of FMS's models have."""

    src_vocab_size: int
    norm_eps: float
    nheads: int
    kvheads: int
    nlayers: int
    max_expected_seq_len: int


class _Dense(TypedDict):
    """The settings that FMS's models without experts have."""

    emb_dim: int
    multiple_of: int
    hidden_grow_factor: float
    activation_fn: str
    tie_heads: bool


class _HeadDim(TypedDict):
    head_dim: int


class _Biases(TypedDict):
    attn_bias: bool


class _Rope(TypedDict):
    rope_theta: float
    rope_scaling: dict[str, object]


def _empty_model(config: CheckpointConfig, seq_len: int) -> nn.Module:
    """Build FMS's model of these settings, whose parameters have shapes but no memory."""
    common: _Sizes = {
        "src_vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        "nheads": config.num_heads,
        "kvheads": config.num_kv_heads,
        "nlayers": config.num_layers,
        "max_expected_seq_len": seq_len,
    }
    dense: _Dense = {
        "emb_dim": config.hidden_size,
        "multiple_of": 1,
        "hidden_grow_factor": (config.intermediate_size + 0.5) / config.hidden_size,  # FMS rounds down
        "activation_fn": config.activation,
        "tie_heads": False,  # done here
    }
    llama3: dict[str, object] = {"rope_type": "llama3", **config.llama3} if config.llama3 else {}
    head_dim: _HeadDim = {"head_dim": config.head_dim}
    biases: _Biases = {"attn_bias": config.attention_bias}
    rope: _Rope = {"rope_theta": config.rope_theta, "rope_scaling": llama3}
    with torch.device("meta"):
        match config.family.model_type:
            case "llama":
                return LLaMA(LLaMAConfig(**common, **dense, **biases, **rope, mlp_bias=config.mlp_bias))
            case "granite":
                multipliers: dict[str, float] = {
                    name: getattr(config, name) for name in config.family.multipliers
                }
                granite = GraniteConfig(**common, **dense, **head_dim, **biases, mlp_bias=config.mlp_bias)
                return Granite(replace(granite, rope_theta=config.rope_theta, **multipliers))
            case "qwen3":
                return Qwen3(Qwen3Config(**common, **dense, **head_dim, **biases, **rope))
            case "mistral":
                theta = config.rope_theta
                return Mistral(
                    MistralConfig(**common, **dense, **head_dim, rope_base=theta, rope_scaling=llama3)
                )
            case "mixtral":
                mixtral = MixtralConfig(
                    **common,
                    dim=config.hidden_size,
                    hidden_dim=config.intermediate_size,
                    num_experts=config.num_experts,
                    top_k_experts=config.experts_per_token,
                    rope_base=config.rope_theta,
                )
                return Mixtral(mixtral)
            case other:
                raise AssertionError(other)


def _reader(
    config: CheckpointConfig, files: WeightFiles, stack: ExitStack
) -> tuple[Container[str], Callable[[str], torch.Tensor]]:
    """Return which tensors there are, and a function that reads one until the stack ends."""
    if files.kind == TORCH:
        tensors = _load_torch(files)
        check_tensors(config, files.folder, {name: tuple(x.shape) for name, x in tensors.items()})
        return tensors, tensors.__getitem__
    from safetensors import safe_open

    opened = {path: stack.enter_context(safe_open(str(path), "pt")) for path in files.paths}
    return files.file_of, lambda name: opened[files.file_of[name]].get_tensor(name)


def _load_torch(files: WeightFiles) -> dict[str, torch.Tensor]:
    """Load the tensors in files of torch.save. Raises UserError for files that hold anything else."""
    tensors: dict[str, torch.Tensor] = {}
    for path in files.paths:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be loaded as weights alone: {reason}") from error
        if not isinstance(loaded, dict):
            raise UserError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
        for name, tensor in loaded.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in FLOATS:
                what = str(tensor.dtype) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise UserError(
                    f"{path}: {name} is of type {what}; weights have to be floating-point tensors"
                )
            if name in tensors:
                raise UserError(f"checkpoint {files.folder} has {name} in two files")
            tensors[name] = tensor
    check_named(files.folder, files.kind, files.named, frozenset(tensors))
    return tensors


def _fill(
    model: nn.Module,
    parameters: Mapping[str, Parameter],
    read: Callable[[str], torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give the model its parameters, tensor by tensor, so that no second model is ever in memory.

    A head that is made of the embedding's tensor is the embedding itself.
    """
    for name, empty in dict(model.named_parameters()).items():
        parameter = parameters[name]
        assert tuple(empty.shape) == parameter.shape, f"{name} is {empty.shape} in FMS"
        assert empty.numel() == sum(prod(piece.shape) for piece in parameter.pieces), name
        if name == "head.weight" and parameter.pieces == parameters[EMBEDDING].pieces:
            weight = model.get_parameter(EMBEDDING)
        else:
            filled = torch.empty(parameter.shape, device=device, dtype=dtype)
            for piece in parameter.pieces:
                tensor = read(piece.name)
                filled[piece.at].copy_(_paired(tensor, piece.heads) if piece.heads else tensor)
            weight = nn.Parameter(filled)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, weight)


def _tie(model: nn.Module) -> None:
    """Tie the head to the embedding if they are equal, as Hugging Face does with a file that has both."""
    embedding = model.get_parameter(EMBEDDING)
    if torch.equal(embedding, model.get_parameter("head.weight")):
        model.get_submodule("head").weight = embedding


def _paired(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rows of a query or key projection, from Hugging Face's halves of a head to FMS's pairs."""
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _dtype(data_type: str | torch.dtype | None) -> torch.dtype:
    dtype = getattr(torch, data_type, None) if isinstance(data_type, str) else data_type or torch.float32
    if dtype not in FLOATS:
        allowed = ", ".join(str(float_type).removeprefix("torch.") for float_type in FLOATS)
        raise UserError(f"data_type={data_type} cannot be computed with; use one of {allowed}")
    return dtype
