"""Names of workload shapes: everything about a model config that decides its speed. Free of torch."""

from __future__ import annotations

import hashlib
import json

from ringexp.config import AttentionModelConfig, FmsModelConfig, ModelConfig
from ringexp.models.checkpoints.folder import read_config


def shape_of(model: ModelConfig) -> str:
    """The key under which a model's measured speeds are kept, such as attention-b1-e4096-h32-kv8-d128-..."""
    if isinstance(model, AttentionModelConfig):
        causal = "causal" if model.causal else "full"
        around = f"e{model.emb_dim}" if model.projections else "bare"
        return (
            f"attention-b{model.batch_size}-{around}-h{model.num_heads}-kv{model.num_kv_heads}"
            f"-d{model.head_dim}-{causal}-{model.dtype}"
        )
    assert isinstance(model, FmsModelConfig)
    if model.checkpoint:
        facts = json.dumps(read_config(model.checkpoint), sort_keys=True)
        digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
        return f"checkpoint-{digest}-b{model.batch_size}-layer-{model.dtype}"
    extra = "".join(f"-{key}{value}" for key, value in sorted(model.overrides.items()))
    return f"{model.architecture}-{model.variant}{extra}-b{model.batch_size}-layer-{model.dtype}"
