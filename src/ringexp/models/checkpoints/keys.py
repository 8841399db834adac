"""The keys that a checkpoint's config.json may have, by family. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ringexp.errors import UserError

COMMON = (
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
)
"""Keys that are read for every family."""

COMMON_DEFAULTS: Mapping[str, object] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
"""Values that Hugging Face's class of Llama has where config.json has none."""

BIASES = {"attention_bias": False, "mlp_bias": False}
MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")


@dataclass(frozen=True)
class Family:
    """A family of models: the names of its classes, and which settings FMS computes.

    Attributes:
        model_type: Hugging Face's name, and FMS's.
        architecture: the name of Hugging Face's class.
        changes: defaults that differ from `COMMON_DEFAULTS`, or are the family's own.
        any_head_dim: heads may have another size than hidden_size / num_attention_heads.
        scales_rope: Llama 3's rope scaling is computed.
        activations: the only ones that are computed, by Hugging Face's names; none for all that are known.
        attention_bias, mlp_bias: biases are computed.
        windows: Hugging Face's class reads sliding_window.
        mixed_layers: single layers may have a window.
        experts: the feed-forward part is a mixture of experts.
        fused: FMS keeps the projections of queries, keys and values as one parameter, and likewise the gates
            and values of the feed-forward part.
        norms_heads: queries and keys are normed.
        multipliers: names of the settings that scale parts of the model.
    """

    model_type: str
    architecture: str
    changes: Mapping[str, object] = field(default_factory=dict)
    any_head_dim: bool = False
    scales_rope: bool = False
    activations: tuple[str, ...] = ()
    attention_bias: bool = False
    mlp_bias: bool = False
    windows: bool = False
    mixed_layers: bool = False
    experts: bool = False
    fused: bool = True
    norms_heads: bool = False
    multipliers: tuple[str, ...] = ()

    @property
    def defaults(self) -> Mapping[str, object]:
        """Values that Hugging Face's class of the family has where config.json has none."""
        return MappingProxyType({**COMMON_DEFAULTS, **self.changes})

    @property
    def read(self) -> frozenset[str]:
        """Keys whose values decide what is computed."""
        return frozenset((*COMMON, *self.changes))


FAMILIES = (
    Family("llama", "LlamaForCausalLM", BIASES, scales_rope=True, attention_bias=True, mlp_bias=True),
    Family(
        "granite",
        "GraniteForCausalLM",
        {**BIASES, **dict.fromkeys(MULTIPLIERS, 1.0)},
        any_head_dim=True,
        attention_bias=True,
        mlp_bias=True,
        multipliers=MULTIPLIERS,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        {
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        any_head_dim=True,
        scales_rope=True,
        attention_bias=True,
        windows=True,
        mixed_layers=True,
        fused=False,
        norms_heads=True,
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        any_head_dim=True,
        scales_rope=True,
        windows=True,
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "rope_theta": 1_000_000.0,
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        activations=("silu", "swish"),
        windows=True,
        experts=True,
    ),
)
"""The families that can be loaded."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IGNORED = _words(
    # notes on the file and its origin
    "_name_or_path name_or_path transformers_version _commit_hash dtype torch_dtype tokenizer_class "
    "prefix task_specific_params finetuning_task problem_type id2label label2id num_labels _num_labels "
    "unsloth_version unsloth_fixed transformers.js_config max_sequence_length is_llama_config "
    # training: dropout, first weights, losses
    "attention_dropout attention_probs_dropout_prob hidden_dropout hidden_dropout_prob resid_pdrop "
    "embd_pdrop initializer_range router_aux_loss_coef router_jitter_noise output_router_logits "
    "gradient_checkpointing neftune_noise_alpha tf_legacy_loss "
    # tokens of the tokenizer
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id "
    # what else is returned, and how it is computed rather than what
    "is_decoder max_window_layers use_cache output_attentions output_hidden_states return_dict "
    "use_return_dict use_bfloat16 attn_implementation _attn_implementation _attn_implementation_autoset "
    "_attn_implementation_internal _experts_implementation_internal experts_implementation "
    "_flash_attn_2_enabled "
    # settings of generation, which Hugging Face moves to generation_config.json
    "max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample "
    "num_beams num_beam_groups penalty_alpha temperature top_k top_p min_p top_h typical_p "
    "epsilon_cutoff eta_cutoff diversity_penalty repetition_penalty encoder_repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids "
    "renormalize_logits constraints forced_bos_token_id forced_eos_token_id forced_decoder_ids "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "sequence_bias token_healing guidance_scale low_memory watermarking_config num_return_sequences "
    "output_scores output_logits return_dict_in_generate cache_implementation cache_config "
    "max_cache_len return_legacy_cache decoder_start_token_id is_assistant num_assistant_tokens "
    "num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind "
    "assistant_early_exit target_lookbehind prompt_lookup_num_tokens max_matching_ngram_size "
    "compile_config disable_compile prefill_chunk_size use_mtp continuous_batching_config "
    "assistant_ensemble_weight speculation_type dola_layers _from_model_config "
)
"""Keys that change no logits of these families in Hugging Face's models, whatever their values are."""

SWITCHED_OFF: Mapping[str, tuple[object, ...]] = {
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "torchscript": (False,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1.0, 1, None),
    "rope_interleaved": (False,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, True, None),
    "attention_chunk_size": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "use_qk_norm": (False, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": (None,),
    "per_layer_config": (None,),
}
"""Keys that are allowed as long as their feature is off, and the values that mean off."""


def family_of(folder: object, raw: Mapping[str, object]) -> Family:
    """Return the family of a config.json, as Hugging Face picks its class: by model_type.

    Raises UserError for a family that is not known, and for a checkpoint that is no language model of it.
    """
    families = {family.model_type: family for family in FAMILIES}
    listed = raw.get("architectures") or []
    names = [str(name) for name in listed] if isinstance(listed, list) else [str(listed)]
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        has = names[0] if names else f"model of type {json.dumps(kind)}"
        allowed = ", ".join(family.architecture for family in FAMILIES)
        raise UserError(f"checkpoint {folder} has a {has}; use one of {allowed}")
    family = families[kind]
    if names not in ([], [family.architecture]):
        raise UserError(
            f"checkpoint {folder} has a {', '.join(names)} of model_type {kind}; use a {family.architecture}"
        )
    return family
