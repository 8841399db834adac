"""Shapes have the work, weights and memory of the models that they describe."""

import pytest
import torch
from fms.models import get_model
from omegaconf import OmegaConf

from ringexp.config import CONF_DIR, AttentionModelConfig
from ringexp.configure.named_models import named_model, named_shape
from ringexp.models.attention.workload import AttentionWorkload, BareAttentionWorkload
from ringexp.models.fms import facts
from ringexp.models.fms.shapes import KNOWN
from ringexp.planning import make_plan
from support.fms_work import attention_flops_per_pair, linear_flops_per_token

WHOLE_MODELS = sorted(
    path.stem for path in (CONF_DIR / "model").glob("*.yaml") if "architecture" in OmegaConf.load(path)
)


def on_meta(name: str) -> torch.nn.Module:
    config = OmegaConf.load(CONF_DIR / "model" / f"{name}.yaml")
    with torch.device("meta"):
        return get_model(
            config.architecture,
            config.variant,
            device_type="meta",
            data_type=getattr(torch, config.dtype),
            distributed_strategy="none",
            **(config.get("overrides") or {}),
        )


def test_every_known_fms_model_is_one_of_conf():
    assert len(WHOLE_MODELS) == len(KNOWN)


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_a_whole_model_has_the_shape_of_fmss(name):
    shape, layers = named_shape(name), facts.layers(on_meta(name))
    attention = facts.first_attention(layers[0])
    assert shape == facts.shape_of(layers, 1, next(layers.parameters()).dtype)
    assert shape.layers == len(layers)
    assert shape.token_flops == linear_flops_per_token(layers[0])
    assert shape.pair_flops == attention_flops_per_pair(attention)
    assert (shape.num_kv_heads, shape.emb_dim) == (attention.kvheads, attention.emb_dim)
    weights = sum(part.numel() for part in layers[0].parameters() if part.dim() > 1)
    assert shape.layer_parameters == weights


@pytest.mark.parametrize(
    ("name", "workload"), [("attention_tiny", AttentionWorkload), ("ring_gqa_4096", BareAttentionWorkload)]
)
def test_an_attention_module_has_the_work_and_memory_of_its_workload(name, workload):
    config, shape = named_model(name), named_shape(name)
    assert isinstance(config, AttentionModelConfig)
    device = torch.device("cpu")
    made = workload(config, 64, device, 0) if config.projections else workload(config, device)
    plan = make_plan(64, [64])
    assert made.flops(plan, 0) == 64 * shape.token_flops + plan.pairs(0) * shape.pair_flops
    assert made.memory.kv_token == shape.kv_token_bytes
    assert made.memory == shape.memory
    if config.projections:
        assert linear_flops_per_token(made._module) == shape.token_flops
        assert attention_flops_per_pair(made._module) == shape.pair_flops
