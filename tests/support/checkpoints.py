"""Tiny Hugging Face checkpoints with random weights and a tokenizer, as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ODD = {
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 115,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
}
"""No power of two in it."""
LLAMA_31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
CHECKPOINTS = {
    "llama": ("LlamaConfig", {}),
    "llama-3.1": ("LlamaConfig", {"rope_parameters": LLAMA_31}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "granite": ("GraniteConfig", GRANITE),
    "qwen3": ("Qwen3Config", {"head_dim": 24}),
    "qwen3-tied": ("Qwen3Config", {"head_dim": 24, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"head_dim": 24, "sliding_window": None}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}),
}
"""Name -> the class of its configuration, and what is special about it."""

HEADS_24 = {"head_dim": 24}
BIASES = {"attention_bias": True, "mlp_bias": True}
TIED = {"tie_word_embeddings": True}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "mish", "sigmoid", "tanh", "swish")
HONOURED = {
    "llama": ("LlamaConfig", {}),
    "llama, heads of keys not given": ("LlamaConfig", {"num_key_value_heads": None}),
    "llama, rope of 3.1": ("LlamaConfig", {"rope_parameters": LLAMA_31}),
    "llama, base of the rope": ("LlamaConfig", {"rope_parameters": {"rope_theta": 123456.0}}),
    "llama, tied": ("LlamaConfig", TIED),
    "llama, biases": ("LlamaConfig", BIASES),
    "llama, eps": ("LlamaConfig", {"rms_norm_eps": 0.01}),
    "granite": ("GraniteConfig", GRANITE),
    "granite, head_dim": ("GraniteConfig", GRANITE | {"head_dim": 14}),
    "granite, tied with biases": ("GraniteConfig", GRANITE | TIED | BIASES),
    "qwen3": ("Qwen3Config", HEADS_24),
    "qwen3, biases": ("Qwen3Config", HEADS_24 | {"attention_bias": True}),
    "qwen3, rope of 3.1": ("Qwen3Config", HEADS_24 | {"rope_parameters": LLAMA_31}),
    "qwen3, tied, eps": ("Qwen3Config", HEADS_24 | TIED | {"rms_norm_eps": 0.01}),
    "mistral": ("MistralConfig", HEADS_24 | {"sliding_window": None}),
    "mistral, window as long as the prompt": ("MistralConfig", {"sliding_window": 200}),
    "mistral, rope of 3.1, tied": ("MistralConfig", TIED | {"rope_parameters": LLAMA_31}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "mixtral, tied, eps": ("MixtralConfig", TIED | {"num_local_experts": 4, "rms_norm_eps": 0.001}),
    **{f"llama, {name}": ("LlamaConfig", {"hidden_act": name}) for name in ACTIVATIONS},
    **{f"granite, {name}": ("GraniteConfig", GRANITE | {"hidden_act": name}) for name in ACTIVATIONS[:3]},
    **{f"qwen3, {name}": ("Qwen3Config", {"hidden_act": name}) for name in ACTIVATIONS[:3]},
    **{f"mistral, {name}": ("MistralConfig", {"hidden_act": name}) for name in ACTIVATIONS[:3]},
}
"""Settings that are honoured, with shapes that are no powers of two."""

LETTERS = "abcdefghijklmnopqrstuvwxyz .,"


def save_checkpoint(folder: Path, kind: str, settings: dict) -> torch.nn.Module:
    """A model with weights large enough for its tokens to differ, saved to `folder`; each letter a token."""
    model = save_model(folder, kind, SHAPE | settings)
    save_tokenizer(folder)
    return model


def save_model(folder: Path, kind: str, settings: dict) -> torch.nn.Module:
    torch.manual_seed(1)
    settings = {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, **settings}
    config = getattr(transformers, kind)(**settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.1 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
        if settings.get("tie_word_embeddings"):  # or each token would be followed by itself
            model.get_input_embeddings().weight.mul_(0.05)
    model.save_pretrained(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {letter: index for index, letter in enumerate(LETTERS)}
    vocabulary |= {f"<{index}>": index for index in range(len(LETTERS), SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=".").save_pretrained(folder)


@torch.inference_mode()
def distance(folder: Path, dtype: torch.dtype = torch.float32, seq_len: int = 200) -> float:
    """Return the largest difference between our logits and Hugging Face's, divided by their spread."""
    from ringexp.models.checkpoints.load import load_checkpoint

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()
    ours = load_checkpoint(folder, torch.device("cpu"), dtype, seq_len)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, theirs.config.vocab_size, (2, seq_len), generator=generator)
    positions = torch.arange(seq_len).expand(2, -1)
    expected = theirs(ids).logits
    logits = ours(ids, position_ids=positions, attn_name="sdpa_causal")
    return ((logits - expected).abs().max() / (expected.max() - expected.min())).item()


@torch.inference_mode()
def greedy(model: torch.nn.Module, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Hugging Face's own continuation [B, S + new]; the mask keeps it from taking token 0 for padding."""
    generate: Any = model.generate
    return generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
