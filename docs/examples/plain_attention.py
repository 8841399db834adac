"""A plain PyTorch transformer block whose prompt is spread unevenly over ranks.

    torchrun --nproc-per-node 3 docs/examples/plain_attention.py
    torchrun --nproc-per-node 3 docs/examples/plain_attention.py --speeds 4 2 1

Without --speeds the ranks are measured. On GPUs every rank takes its own, or several share one over gloo.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import ringexp

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 2, 32
EMB_DIM = NUM_HEADS * HEAD_DIM


class Block(nn.Module):
    """Attention and feed-forward; `attend` takes q [B, L, H, D] and k, v [B, L, Hkv, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(EMB_DIM) for _ in range(2))
        self.qkv = nn.Linear(EMB_DIM, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, bias=False)
        self.out = nn.Linear(EMB_DIM, EMB_DIM, bias=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(EMB_DIM, 4 * EMB_DIM), nn.GELU(), nn.Linear(4 * EMB_DIM, EMB_DIM)
        )

    def forward(self, x: torch.Tensor, attend) -> torch.Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (-1, HEAD_DIM))
        attended = attend(*qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=2))
        x = x + self.out(attended.flatten(2))
        return x + self.feed_forward(self.norms[1](x))


def attend_alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seq-len", type=int, default=1500)
    parser.add_argument("--speeds", type=float, nargs="+", help="one a rank, in any unit")
    arguments = parser.parse_args()
    gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    one_gpu_a_rank = gpus >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if one_gpu_a_rank else "gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)  # the same weights and prompt on every rank
    block = Block().to(device)
    prompt = torch.randn(2, arguments.seq_len, EMB_DIM, device=device)

    speeds = arguments.speeds or ringexp.measure_speeds(
        arguments.seq_len,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=prompt.dtype,
        device=device,
    )
    plan = ringexp.plan(speeds, arguments.seq_len)
    mine = ringexp.shard(prompt, plan, rank)
    local = block(mine, lambda q, k, v: ringexp.ring_attention(q, k, v, plan))
    whole = ringexp.unshard(local, plan)

    error = (whole - block(prompt, attend_alone)).abs().max().item()
    if rank == 0:
        print(f"tokens: {plan.tokens}")
        print(f"shares: {[round(share, 3) for share in plan.shares]}")
        print(f"largest error against one process: {error:.1e}")
    ringexp.close()
    dist.destroy_process_group()
    if error > 1e-4:
        raise SystemExit(f"rank {rank}: the ring is wrong")


if __name__ == "__main__":
    main()
