"""A Hugging Face model whose prompt is spread unevenly over ranks: the last logits, with nothing patched.

    torchrun --nproc-per-node 3 docs/examples/hf_transformers.py

The model is tiny, random and made from its config, so nothing is downloaded. The families of FAMILIES work
alike, as long as they ask for causal attention over the whole prompt; anything else is refused by name.
"""

import argparse
import os

import torch
import torch.distributed as dist
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

import ringexp

FAMILIES = [
    "cohere",
    "ernie4_5",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "ministral3",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "starcoder2",
]
"""Values of model_type: decoders whose tokens meet in attention alone, by positions that they are given."""

ROPES = ("default", "linear", "llama3", "yarn")
"""Those that turn a token by its position alone; dynamic and longrope look at the longest position, too."""

WITHOUT_EFFECT = ("output_attentions", "output_router_logits", "position_ids", "use_cache")
"""Keywords of the attention interface that change nothing here."""


def check_model(model, seq_len: int) -> None:
    """Raise UserError, by name, for a model that would be computed otherwise than on one process."""
    config = model.config
    if config.model_type not in FAMILIES:
        raise ringexp.UserError(
            f"model_type={config.model_type} is not handled; use one of {', '.join(FAMILIES)}"
        )
    ropes = config.rope_parameters or {}
    for rope in [ropes] if "rope_type" in ropes else ropes.values():
        if rope["rope_type"] not in ROPES:
            raise ringexp.UserError(
                f"rope_type={rope['rope_type']} is not handled; use one of {', '.join(ROPES)}"
            )
    for layer_type in set(getattr(config, "layer_types", None) or ()):
        window = getattr(config, "sliding_window", None)
        slides = layer_type == "sliding_attention" and (window is None or window < seq_len)
        if slides or layer_type not in ("full_attention", "sliding_attention"):
            raise ringexp.UserError(f"layer_type={layer_type} is not handled for {seq_len} tokens")
    if model.training:
        raise ringexp.UserError("a model that is being trained is not handled; call model.eval()")


def check_attention(module, seq_len: int, attention_mask, asked: dict) -> None:
    """Raise UserError, by name, for whatever a layer asks of attention that the ring does not do."""
    if attention_mask is not None:
        raise ringexp.UserError("attention_mask is not handled, so neither is padding")
    if not getattr(module, "is_causal", True):
        raise ringexp.UserError("is_causal=False is not handled")
    for name, value in asked.items():
        fits = value is None or name in WITHOUT_EFFECT
        fits |= name == "dropout" and value == 0
        fits |= name == "is_causal" and value is True
        fits |= name == "sliding_window" and value is not None and value >= seq_len
        if not fits:
            shown = "..." if isinstance(value, torch.Tensor) else value
            raise ringexp.UserError(f"{name}={shown} is not handled for {seq_len} tokens")


def ring_attention(module, query, key, value, attention_mask, *, plan, scaling=None, **asked):
    """query [B, H, L, D], key and value [B, Hkv, L, D] -> [B, L, H, D], and no weights.

    An implementation that is not in transformers' AttentionMaskInterface gets no mask; the ring needs none.
    `plan` is what the model's forward was called with: it hands unknown keywords on to here.
    """
    check_attention(module, plan.seq_len, attention_mask, asked)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return ringexp.ring_attention(q, k, v, plan, softmax_scale=scaling), None


AttentionInterface.register("ringexp", ring_attention)


def last_logits(model, ids, plan: ringexp.Plan, rank: int) -> torch.Tensor:
    """Return the logits [B, V] after the whole prompt ids [B, S], without padding, on every rank."""
    check_model(model, plan.seq_len)
    mine = ringexp.shard(ids, plan, rank)
    where = ringexp.positions(plan, rank, ids.device).expand(ids.shape[0], -1)
    output = model(mine, position_ids=where, use_cache=False, logits_to_keep=1, plan=plan)
    logits = output.logits[:, -1].contiguous()
    dist.broadcast(logits, group_src=plan.owner_of_last)
    return logits


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seq-len", type=int, default=1000)
    arguments = parser.parse_args()
    gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    one_gpu_a_rank = gpus >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if one_gpu_a_rank else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # the same weights and prompt on every rank
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=arguments.seq_len,
    )
    model = LlamaForCausalLM(config).to(device).eval()
    ids = torch.randint(config.vocab_size, (2, arguments.seq_len), device=device)

    speeds = list(range(world_size, 0, -1))  # or ringexp.measure_speeds(...)
    plan = ringexp.plan(speeds, arguments.seq_len)
    model.set_attn_implementation("ringexp")
    logits = last_logits(model, ids, plan, rank)

    model.set_attn_implementation("sdpa")
    alone = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    error = ((logits - alone).abs().max() / (alone.max() - alone.min())).item()
    if rank == 0:
        print(f"tokens: {plan.tokens}")
        print(f"shares: {[round(share, 3) for share in plan.shares]}")
        print(f"largest error against one process, of the logits' range: {error:.1e}")
    ringexp.close()
    dist.destroy_process_group()
    if error > 1e-5:
        raise SystemExit(f"rank {rank}: the ring is wrong")


if __name__ == "__main__":
    main()
