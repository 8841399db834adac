"""Every kind of models is found by its name, and says what it is before it is built."""

from dataclasses import asdict

import pytest

from ringexp.config import AttentionModelConfig, FmsModelConfig
from ringexp.errors import UserError
from ringexp.models.registry import KINDS, config_from, kind_named, model_of
from ringexp.planning.masks import Mask

FLOAT32 = "b1-layer-float32"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_reads_back_its_own_config(kind):
    config = kind_named(kind).config_class(name="one", kind=kind, batch_size=3)
    assert config_from(asdict(config)) == config
    assert model_of(config).speed_key


def test_an_unknown_kind_is_refused_with_a_hint():
    with pytest.raises(UserError, match=r"model\.kind=atention is unknown.*did you mean attention"):
        model_of(FmsModelConfig(kind="atention"))


def test_a_kind_says_what_it_is():
    layer, whole = model_of(AttentionModelConfig(causal=False)), model_of(FmsModelConfig())
    assert (layer.generates_text, layer.mask, layer.checkpoint) == (False, Mask.full(), None)
    assert (whole.generates_text, whole.mask) == (True, Mask.causal())
    checkpoints = [model_of(FmsModelConfig(checkpoint=folder)).checkpoint for folder in (None, "", "DIR")]
    assert checkpoints == [None, None, "DIR"]


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (AttentionModelConfig(), "attention-b1-e4096-h32-kv32-d128-causal-float32"),
        (
            AttentionModelConfig(projections=False, causal=False, dtype="bfloat16"),
            "attention-b1-bare-h32-kv32-d128-full-bfloat16",
        ),
        (FmsModelConfig(), f"llama-micro-{FLOAT32}"),
        (
            FmsModelConfig(overrides={"nlayers": 2, "kvheads": 1}),
            "llama-micro-kvheads1-nlayers2-b1-layer-float32",
        ),
    ],
)
def test_keys_of_stored_speeds_keep_their_form(model, key):
    assert model_of(model).speed_key == key
