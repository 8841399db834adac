"""The work of FMS modules, counted from their weights: the oracle of `ModelShape`."""

from fms.modules.attention import MultiHeadAttention
from fms.modules.feedforward import MOEFeedForward
from torch import nn


def linear_flops_per_token(module: nn.Module) -> int:
    """Count 2 x the weights that one token meets: those of linear layers, and of its own experts alone."""
    flops = sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
    for part in module.modules():
        if isinstance(part, MOEFeedForward):
            experts = part.cond_ffn
            weights = experts.w13.numel() + experts.w2.numel()
            flops += 2 * weights * part.num_activated_experts // experts.num_experts
    return flops


def attention_flops_per_pair(attention: MultiHeadAttention) -> int:
    """Count the operations of one query-key pair over all heads: 2 D for the score, 2 D for the value."""
    return 2 * attention.nheads * (attention.emb_kq_per_head + attention.emb_v_per_head)
