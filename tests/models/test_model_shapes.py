"""The shapes that simulations know are those that runs have."""

import pytest
import torch
from fms.models import get_model
from omegaconf import OmegaConf

from ringexp.cli.run import CONF_DIR
from ringexp.config import AttentionModelConfig
from ringexp.models.attention.workload import AttentionWorkload, BareAttentionWorkload
from ringexp.models.fms import facts
from ringexp.models.model_shapes import WHOLE_MODELS, attention_config, model_shape
from ringexp.planning import make_plan


@pytest.mark.parametrize("name", sorted(WHOLE_MODELS))
def test_a_whole_models_layer_has_the_work_of_fmss(name):
    config = OmegaConf.load(CONF_DIR / "model" / f"{name}.yaml")
    overrides = dict(config.get("overrides") or {}) | {"nlayers": 1}
    with torch.device("meta"):
        model = get_model(
            config.architecture,
            config.variant,
            device_type="meta",
            data_type=torch.bfloat16,
            distributed_strategy="none",
            **overrides,
        )
    layer, shape = model.get_submodule("base_model.layers.0"), WHOLE_MODELS[name]
    attention = facts.first_attention(layer)
    assert shape.token_flops == facts.linear_flops_per_token(layer)
    assert shape.pair_flops == facts.attention_flops_per_pair(attention)
    assert (shape.num_kv_heads, shape.emb_dim) == (attention.kvheads, attention.emb_dim)
    weights = sum(part.numel() for part in layer.parameters() if part.dim() > 1)
    assert shape.stored_weights == weights


@pytest.mark.parametrize(
    ("name", "workload"), [("attention_tiny", AttentionWorkload), ("ring_gqa_4096", BareAttentionWorkload)]
)
def test_an_attention_module_has_the_work_and_memory_of_its_workload(name, workload):
    config, shape = attention_config(name), model_shape(name)
    assert isinstance(config, AttentionModelConfig)
    device = torch.device("cpu")
    made = workload(config, 64, device, 0) if config.projections else workload(config, device)
    plan = make_plan(64, [64])
    assert made.flops(plan, 0) == 64 * shape.token_flops + plan.pairs(0) * shape.pair_flops
    assert made.memory.kv_token == shape.kv_token_bytes
    if config.projections:
        assert made.memory == shape.memory
