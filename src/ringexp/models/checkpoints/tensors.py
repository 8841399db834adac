"""The parameters of FMS's model, each made of Hugging Face's tensors. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ringexp.errors import UserError
from ringexp.models.checkpoints.config import CheckpointConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WITHOUT_PLACE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tensors of old files that follow from config.json, so that Hugging Face leaves them out."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """One of Hugging Face's tensors, and where it goes in a parameter of FMS.

    Attributes:
        name: the tensor.
        shape: its shape.
        at: indices of the parameter's first axes.
        heads: the number of heads, whose halves become neighbouring pairs; 0 to copy the tensor as it is.
    """

    name: str
    shape: Shape
    at: tuple[int | slice, ...] = (slice(None),)
    heads: int = 0


@dataclass(frozen=True)
class Parameter:
    """One parameter of FMS's model, made of pieces that fill it completely."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]


def parameters_of(config: CheckpointConfig, names: Container[str]) -> list[Parameter]:
    """List FMS's parameters with their pieces, of a file that has the tensors `names`.

    A tied model's head is listed as its embedding, unless the file has both.
    """
    embedding, head, norm = EMBEDDING, HEAD, "model.norm.weight"
    if config.tied and HEAD not in names:
        head = EMBEDDING
    elif config.tied and EMBEDDING not in names:
        embedding = HEAD
    words = (config.vocab_size, config.hidden_size)
    outer = [
        _whole("base_model.embedding.weight", embedding, words),
        _whole("base_model.dec_norm.weight", norm, (config.hidden_size,)),
        _whole("head.weight", head, words),
    ]
    layers = (_layer(config, index, names) for index in range(config.num_layers))
    return outer + [parameter for layer in layers for parameter in layer]


def check_tensors(config: CheckpointConfig, folder: Path, shapes: Mapping[str, Shape]) -> None:
    """Check that the tensors in a checkpoint's files are those of the model in its config.json, all of them.

    Raises UserError for a tensor that is missing, has another shape, or has no place in the model.
    """
    needed = {
        piece.name: piece.shape for parameter in parameters_of(config, shapes) for piece in parameter.pieces
    }
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise UserError(
            f"checkpoint {folder}: its files lack {len(missing)} of the {len(needed)} tensors that "
            f"config.json calls for, such as {missing[0]}"
        )
    for name, shape in needed.items():
        if tuple(shapes[name]) != shape:
            raise UserError(
                f"checkpoint {folder}: {name} is {list(shapes[name])}, "
                f"but config.json calls for {list(shape)}"
            )
    beyond = [name for name in shapes if name not in needed and not WITHOUT_PLACE.fullmatch(name)]
    if beyond:
        raise UserError(
            f"checkpoint {folder}: its files have {len(beyond)} tensors that the model of config.json has no "
            f"place for, such as {beyond[0]}"
        )


def _whole(name: str, source: str, shape: Shape) -> Parameter:
    return Parameter(name, shape, (Piece(source, shape),))


def _rows(name: str, *pieces: Piece) -> Parameter:
    """Return a parameter that consists of pieces, stacked row-wise in this order."""
    placed, row = [], 0
    for piece in pieces:
        end = row + piece.shape[0]
        placed.append(Piece(piece.name, piece.shape, (slice(row, end),), piece.heads))
        row = end
    return Parameter(name, (row, *pieces[0].shape[1:]), tuple(placed))


def _layer(config: CheckpointConfig, index: int, names: Container[str]) -> Iterator[Parameter]:
    ours, theirs = f"base_model.layers.{index}.", f"model.layers.{index}."
    width = (config.hidden_size,)
    yield _whole(ours + "ln.weight", theirs + "input_layernorm.weight", width)
    yield _whole(ours + "ff_ln.weight", theirs + "post_attention_layernorm.weight", width)
    yield from _attention(config, ours + "attn.", theirs + "self_attn.")
    if config.num_experts:
        yield from _experts(config, ours + "ff_sub_layer.", theirs, names)
    else:
        yield from _feed_forward(config, ours + "ff_sub_layer.", theirs + "mlp.")


def _attention(config: CheckpointConfig, ours: str, theirs: str) -> Iterator[Parameter]:
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    width = heads * head_dim
    for kind in ("weight", "bias") if config.attention_bias else ("weight",):
        inward = (config.hidden_size,) if kind == "weight" else ()
        query = Piece(f"{theirs}q_proj.{kind}", (width, *inward), heads=heads)
        key = Piece(f"{theirs}k_proj.{kind}", (kv_heads * head_dim, *inward), heads=kv_heads)
        value = Piece(f"{theirs}v_proj.{kind}", (kv_heads * head_dim, *inward))
        if config.family.fused:
            yield _rows(f"{ours}in_proj.qkv_fused.{kind}", query, key, value)
        else:
            for name, piece in (("query", query), ("key", key), ("value", value)):
                yield _rows(f"{ours}in_proj.{name}.{kind}", piece)
        shape = (config.hidden_size, width) if kind == "weight" else (config.hidden_size,)
        yield _whole(f"{ours}dense.{kind}", f"{theirs}o_proj.{kind}", shape)
    if config.family.norms_heads:
        for name in ("q_norm", "k_norm"):
            yield _rows(f"{ours}in_proj.{name}.weight", Piece(f"{theirs}{name}.weight", (head_dim,), heads=1))


def _feed_forward(config: CheckpointConfig, ours: str, theirs: str) -> Iterator[Parameter]:
    width, inner = config.hidden_size, config.intermediate_size
    for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
        inward = (width,) if kind == "weight" else ()
        gate = Piece(f"{theirs}gate_proj.{kind}", (inner, *inward))
        up = Piece(f"{theirs}up_proj.{kind}", (inner, *inward))
        if config.family.fused:
            yield _rows(f"{ours}wg1_fused.{kind}", gate, up)
        else:
            yield _rows(f"{ours}wg.{kind}", gate)
            yield _rows(f"{ours}w1.{kind}", up)
        shape = (width, inner) if kind == "weight" else (width,)
        yield _whole(f"{ours}w2.{kind}", f"{theirs}down_proj.{kind}", shape)


def _experts(config: CheckpointConfig, ours: str, theirs: str, names: Container[str]) -> Iterator[Parameter]:
    """Yield a layer's experts. A file has them one by one, or stacked as in Hugging Face's own model."""
    width, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
    stacked = f"{theirs}mlp.experts.gate_up_proj" in names
    moe = f"{theirs}mlp." if stacked else f"{theirs}block_sparse_moe."
    yield _whole(f"{ours}gate.weight", f"{moe}gate.weight", (experts, width))
    in_shape, out_shape = (experts, 2 * inner, width), (experts, width, inner)
    if stacked:
        yield _whole(f"{ours}cond_ffn.w13", f"{moe}experts.gate_up_proj", in_shape)
        yield _whole(f"{ours}cond_ffn.w2", f"{moe}experts.down_proj", out_shape)
        return
    halves = (("w1", slice(0, inner)), ("w3", slice(inner, 2 * inner)))
    inward = [
        Piece(f"{moe}experts.{expert}.{name}.weight", (inner, width), (expert, half))
        for expert in range(experts)
        for name, half in halves
    ]
    outward = [
        Piece(f"{moe}experts.{expert}.w2.weight", (width, inner), (expert,)) for expert in range(experts)
    ]
    yield Parameter(f"{ours}cond_ffn.w13", in_shape, tuple(inward))
    yield Parameter(f"{ours}cond_ffn.w2", out_shape, tuple(outward))
