"""A Hugging Face model whose prompt is spread unevenly over ranks: the last logits, with nothing patched.

    torchrun --nproc-per-node 3 docs/examples/hf_transformers.py

The model is tiny, random and made from its config, so nothing is downloaded. Any causal decoder of
transformers that asks its attention registry works alike, as long as its layers attend to the whole prompt.
"""

import argparse
import os

import torch
import torch.distributed as dist
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

import ringexp


def ring_attention(module, query, key, value, attention_mask, *, plan, scaling=None, **_):
    """query [B, H, L, D], key and value [B, Hkv, L, D] -> [B, L, H, D], and no weights.

    An implementation that is not in transformers' AttentionMaskInterface gets no mask; the ring needs none.
    `plan` is what the model's forward was called with: it hands unknown keywords on to here.
    """
    assert attention_mask is None, "padding is not supported"
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return ringexp.ring_attention(q, k, v, plan, softmax_scale=scaling), None


AttentionInterface.register("ringexp", ring_attention)


def last_logits(model, ids, plan: ringexp.Plan, rank: int) -> torch.Tensor:
    """Logits [B, V] after the whole prompt ids [B, S], on every rank."""
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
