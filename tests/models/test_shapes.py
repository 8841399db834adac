"""The named model shapes are what their names say."""

from pathlib import Path

import pytest
import torch
from fms.models import get_model
from omegaconf import OmegaConf

from ringexp.errors import UserError
from ringexp.models.fms.facts import check_supported
from support.fms_work import linear_flops_per_token

CONF = Path(__file__).parents[2] / "conf" / "model"
BILLIONS = {"llama3_8b": 8.03, "granite_8b": 8.17, "mistral_7b": 7.25, "qwen3_8b": 8.19, "mixtral_8x7b": 46.7}


def on_meta(name: str) -> torch.nn.Module:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    return get_model(
        config.architecture,
        config.variant,
        device_type="meta",
        data_type=torch.bfloat16,
        **(config.get("overrides") or {}),
    )


@pytest.mark.parametrize("name", BILLIONS)
def test_parameters_are_as_many_as_published(name):
    model = on_meta(name)
    check_supported(model, 1024)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.01 * BILLIONS[name] / 8)


def test_a_token_meets_two_of_eight_experts():
    """Published: 12.9B parameters active; without embedding and head, 2 x 32,000 x 4,096, that is 12.6B."""
    model = on_meta("mixtral_8x7b")
    layers = model.get_submodule("base_model.layers")
    assert linear_flops_per_token(layers) / 2e9 == pytest.approx(12.6, abs=0.05)


def test_a_family_that_is_not_proved_is_refused():
    with pytest.raises(UserError, match="GPTBigCode is not proved on the ring; use one of llama, granite"):
        check_supported(get_model("gpt_bigcode", "ibm.20b", device_type="meta"), 1024)
