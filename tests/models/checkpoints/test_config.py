"""Every key of a config.json is honoured, known to be harmless, or refused by name."""

from __future__ import annotations

import json

import pytest
import transformers

from ringexp.errors import UserError
from ringexp.models.checkpoints.config import parse_config
from ringexp.models.checkpoints.keys import FAMILIES, IGNORED, SWITCHED_OFF
from support.public_configs import PUBLIC

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def parsed(name: str, **changes):
    """Return a public config with other values; a change to ... leaves the key out."""
    raw = {**PUBLIC[name], **changes}
    return parse_config("DIR", {key: value for key, value in raw.items() if value is not ...})


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configs_are_read(name):
    raw, config = PUBLIC[name], parsed(name)
    assert config.vocab_size == raw["vocab_size"]
    assert config.intermediate_size == raw["intermediate_size"]
    assert config.num_kv_heads == raw["num_key_value_heads"]
    assert config.norm_eps == raw["rms_norm_eps"]
    assert config.tied == raw["tie_word_embeddings"]
    assert config.rope_theta == raw.get("rope_theta", 10_000)
    assert config.head_dim == raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"])


def test_special_settings_of_public_configs_are_honoured():
    assert parsed("Llama 3.1 8B").llama3 == LLAMA3
    assert parsed("Llama 2 7B").llama3 is None
    granite = parsed("Granite 3.0 8B")
    assert (granite.attention_multiplier, granite.embedding_multiplier) == (0.0078125, 12.0)
    assert (granite.residual_multiplier, granite.logits_scaling) == (0.22, 16.0)
    mixtral = parsed("Mixtral 8x7B")
    assert (mixtral.num_experts, mixtral.experts_per_token) == (8, 2)
    assert parsed("Mistral 7B v0.1").window == 4096
    assert parsed("Mistral 7B v0.3").window is None
    assert parsed("Qwen3 8B").window is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_missing_keys_mean_what_transformers_means(family):
    default = getattr(transformers, family.architecture.replace("ForCausalLM", "Config"))()
    config = parse_config("DIR", {"model_type": family.model_type})
    theirs = default.to_dict()
    assert config.vocab_size == theirs["vocab_size"]
    assert config.hidden_size == theirs["hidden_size"]
    assert config.intermediate_size == theirs["intermediate_size"]
    assert config.num_layers == theirs["num_hidden_layers"]
    assert config.num_heads == theirs["num_attention_heads"]
    assert config.num_kv_heads == theirs["num_key_value_heads"]
    assert config.norm_eps == theirs["rms_norm_eps"]
    assert config.tied == theirs["tie_word_embeddings"]
    assert config.max_position == theirs["max_position_embeddings"]
    assert config.rope_theta == theirs["rope_parameters"]["rope_theta"]
    assert config.window == theirs.get("sliding_window")
    assert (config.attention_bias, config.mlp_bias) == (
        theirs.get("attention_bias", False),
        theirs.get("mlp_bias", False),
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_no_key_that_transformers_writes_is_unknown(family, tmp_path):
    kind = getattr(transformers, family.architecture.replace("ForCausalLM", "Config"))
    kind(architectures=[family.architecture]).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    parse_config("DIR", written)
    known = family.read | IGNORED | set(SWITCHED_OFF)
    assert set(kind().to_dict()) <= known


def test_settings_of_generation_change_no_logits():
    generation = transformers.GenerationConfig()
    assert set(generation.to_dict()) <= IGNORED
    assert set(generation._get_default_generation_params()) <= IGNORED


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama 3.1 8B", {"rope_scaling": {"rope_type": "default"}}),
        ("Llama 3.1 8B", {"rope_scaling": {"type": "default"}}),
        ("Llama 3.1 8B", {"rope_scaling": {"type": "llama3", **LLAMA3}}),
        ("Llama 3.1 8B", {"rope_scaling": ..., "rope_parameters": {"rope_theta": 5e5, **LLAMA3}}),
        ("Llama 3.1 8B", {"architectures": None}),
        ("Llama 3.1 8B", {"torch_dtype": ..., "dtype": "bfloat16", "pretraining_tp": None}),
        ("Llama 3.1 8B", {"is_decoder": True, "max_length": 7, "id2label": {"0": "a"}, "pruned_heads": {}}),
        ("Llama 3.1 8B", {"sliding_window": None, "attention_chunk_size": None, "is_causal": True}),
        ("Llama 3.1 8B", {"partial_rotary_factor": 1.0, "layer_types": ["full_attention"] * 32}),
        ("Qwen3 8B", {"layer_types": ["full_attention"] * 36, "use_sliding_window": False}),
        ("Mistral 7B v0.3", {"attention_bias": False, "head_dim": None}),
        ("Mixtral 8x7B", {"router_jitter_noise": 0.1, "output_router_logits": True}),
    ],
)
def test_what_changes_nothing_is_taken(name, changes):
    parsed(name, **changes)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 7.0}, 7.0),
        ({"rope_theta": ...}, 10_000.0),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 9.0}}, 9.0),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}}, 7.0),
        ({"rope_theta": ..., "rope_scaling": {"rope_type": "default", "rope_theta": 8.0}}, 8.0),
        (
            {"rope_theta": 7.0, "rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 9.0}},
            7.0,
        ),
    ],
)
def test_the_base_of_the_rope_is_that_of_transformers(changes, theta):
    changes = {"rope_scaling": ..., **changes}
    assert parsed("Llama 3.1 8B", **changes).rope_theta == theta
    raw = {key: value for key, value in {**PUBLIC["Llama 3.1 8B"], **changes}.items() if value is not ...}
    raw = json.loads(json.dumps(raw))  # transformers changes it
    assert transformers.LlamaConfig.from_dict(raw).rope_parameters["rope_theta"] == theta


def test_the_original_length_of_a_scaled_rope_is_found():
    scaling = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    scaling["rope_type"] = "llama3"
    length = "original_max_position_embeddings"
    for changes, expected in (
        ({"rope_scaling": scaling}, 131072),
        ({"rope_scaling": {**scaling, length: 4096}}, 4096),
        ({"rope_scaling": {**scaling, length: 4096}, length: 4096}, 4096),
    ):
        llama3 = parsed("Llama 3.1 8B", **changes).llama3
        raw = json.loads(json.dumps({**PUBLIC["Llama 3.1 8B"], **changes}))  # transformers changes it
        theirs = transformers.LlamaConfig.from_dict(raw).rope_parameters
        assert llama3
        assert llama3[length] == theirs[length] == expected


@pytest.mark.parametrize(
    ("name", "changes", "window"),
    [
        (
            "Mistral 7B v0.1",
            {"use_sliding_window": False},
            4096,
        ),  # which Hugging Face's Mistral does not read
        ("Mistral 7B v0.1", {"sliding_window": ...}, 4096),
        ("Mixtral 8x7B", {"sliding_window": 4096}, 4096),
        ("Qwen3 8B", {"sliding_window": 4096}, None),
        ("Qwen3 8B", {"sliding_window": 4096, "use_sliding_window": True}, None),  # from layer 36 on
        ("Qwen3 8B", {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 35}, 4096),
        (
            "Qwen3 8B",
            {
                "sliding_window": 4096,
                "use_sliding_window": True,
                "layer_types": ["full_attention"] * 35 + ["sliding_attention"],
            },
            4096,
        ),
    ],
)
def test_a_window_is_honoured_up_to_its_length(name, changes, window):
    config = parsed(name, **changes)
    assert config.window == window
    config.check_length("DIR", 4096)
    if window:
        with pytest.raises(UserError, match="sliding window of 4096 tokens"):
            config.check_length("DIR", 4097)
    else:
        config.check_length("DIR", 40_000)


NO_SCALING = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Llama 3.1 8B", {"a_new_setting": 3}, "a_new_setting=3, but the key is unknown to ringexp"),
        (
            "Llama 3.1 8B",
            {"hidden_act": "quick_gelu"},
            'hidden_act="quick_gelu", but FMS\'s llama computes silu',
        ),
        ("Llama 3.1 8B", {"hidden_act": ["silu"]}, "hidden_act="),
        ("Mixtral 8x7B", {"hidden_act": "gelu"}, "FMS's mixtral computes silu, swish"),
        ("Llama 3.1 8B", {"head_dim": 96}, "head_dim=96, but FMS's llama has heads of"),
        ("Llama 3.1 8B", {"hidden_size": 4100}, "num_attention_heads=32, but FMS's llama has heads of"),
        ("Granite 3.0 8B", {"head_dim": 97}, "the rope needs an even number, not 97"),
        ("Mixtral 8x7B", {"head_dim": 64}, "head_dim=64, but FMS's mixtral has heads of"),
        ("Mistral 7B v0.3", {"attention_bias": True}, "attention_bias=true, but FMS's mistral computes"),
        ("Qwen3 8B", {"mlp_bias": True}, "mlp_bias=true"),
        ("Llama 3.1 8B", {"attention_bias": 1}, "attention_bias=1, but it has to be true or false"),
        ("Llama 3.1 8B", {"rope_scaling": NO_SCALING}, 'rope_scaling.rope_type="linear"'),
        ("Llama 3.1 8B", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_scaling.type="dynamic"'),
        ("Llama 3.1 8B", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, '"yarn"'),
        ("Qwen3 8B", {"rope_scaling": {"rope_type": "longrope", "long_factor": [1]}}, "long_factor"),
        (
            "Granite 3.0 8B",
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            "granite computes default alone",
        ),
        (
            "Mixtral 8x7B",
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            "mixtral computes default alone",
        ),
        (
            "Llama 3.1 8B",
            {"rope_scaling": ..., "rope_parameters": {**NO_SCALING, "rope_theta": 1e4}},
            "rope_parameters.rope_type",
        ),
        ("Llama 3.1 8B", {"rope_scaling": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section"),
        (
            "Llama 3.1 8B",
            {"rope_scaling": {"rope_type": "llama3"}},
            "no rope_scaling.factor, which is needed",
        ),
        ("Llama 3.1 8B", {"rope_scaling": "linear"}, "has to be a table"),
        ("Llama 3.1 8B", {"rope_scaling": ..., "rope_parameters": {"full_attention": {}}}, "full_attention"),
        ("Llama 3.1 8B", {"original_max_position_embeddings": 4096}, "the scaled rope has 8192"),
        ("Llama 3.1 8B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("Llama 3.1 8B", {"rope_parameters": {"partial_rotary_factor": 0.5}, "rope_scaling": ...}, "0.5"),
        ("Llama 3.1 8B", {"rope_theta": None}, "rope_theta=null"),
        ("Llama 3.1 8B", {"rms_norm_eps": "1e-5"}, 'rms_norm_eps="1e-5", but it has to be a number above 0'),
        ("Llama 3.1 8B", {"rms_norm_eps": 0}, "rms_norm_eps=0"),
        ("Llama 3.1 8B", {"rms_norm_eps": float("nan")}, "rms_norm_eps=NaN"),
        ("Llama 3.1 8B", {"hidden_size": 0}, "hidden_size=0"),
        ("Llama 3.1 8B", {"num_hidden_layers": 2.5}, "num_hidden_layers=2.5"),
        ("Llama 3.1 8B", {"num_key_value_heads": 5}, "num_key_value_heads=5, but it has to divide"),
        ("Llama 3.1 8B", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ("Llama 3.1 8B", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("Llama 3.1 8B", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("Llama 3.1 8B", {"attention_chunk_size": 8192}, "attention_chunk_size=8192"),
        ("Llama 3.1 8B", {"sliding_window": 4096}, "sliding_window=4096"),
        ("Llama 3.1 8B", {"is_causal": False}, "is_causal=false"),
        ("Llama 3.1 8B", {"pretraining_tp": 2}, "pretraining_tp=2"),
        ("Llama 3.1 8B", {"use_qk_norm": True}, "use_qk_norm=true"),
        ("Llama 3.1 8B", {"attention_multiplier": 0.1}, "attention_multiplier=0.1"),
        ("Llama 3.1 8B", {"layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ("Llama 3.1 8B", {"layer_types": ["full_attention"] * 31}, "one entry for each of 32 layers"),
        ("Qwen3 8B", {"layer_types": ["sliding_attention"] * 36}, "needs use_sliding_window=true"),
        (
            "Qwen3 8B",
            {"layer_types": ["linear_attention"] * 36},
            "takes full_attention and sliding_attention",
        ),
        ("Mistral 7B v0.3", {"sliding_window": 0}, "sliding_window=0"),
        ("Mixtral 8x7B", {"num_experts_per_tok": 9}, "there are num_local_experts=8"),
        ("Mixtral 8x7B", {"num_experts": 4}, "num_experts=4"),
        ("Granite 3.0 8B", {"logits_scaling": 0}, "logits_scaling=0"),
        (
            "Llama 3.1 8B",
            {"quantization_config": {"quant_method": "gptq"}},
            "quantized weights are not computed",
        ),
        ("Llama 3.1 8B", {"quantization_config": {"quant_method": "fp8"}}, '"fp8"'),
        (
            "Llama 3.1 8B",
            {"auto_map": {"AutoModel": "modeling.Own"}},
            "code of a checkpoint's own is not run",
        ),
        ("Llama 3.1 8B", {"per_layer_config": {"0": {}}}, "per_layer_config"),
        ("Llama 3.1 8B", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ("Llama 3.1 8B", {"architectures": ["LlamaForSequenceClassification"]}, "use a LlamaForCausalLM"),
        ("Llama 3.1 8B", {"model_type": "mistral"}, "has a LlamaForCausalLM of model_type mistral"),
        (
            "Llama 3.1 8B",
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
            "has a Qwen2ForCausalLM",
        ),
        ("Llama 3.1 8B", {"model_type": ..., "architectures": ...}, "model of type null; use one of"),
        ("Llama 3.1 8B", {"model_type": ["llama"]}, "use one of LlamaForCausalLM"),
    ],
)
def test_what_changes_the_computation_is_refused_by_name(name, changes, message):
    with pytest.raises(UserError) as error:
        parsed(name, **changes)
    assert message in str(error.value)
    assert "DIR" in str(error.value)
    assert "\n" not in str(error.value)
