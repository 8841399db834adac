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

LETTERS = "abcdefghijklmnopqrstuvwxyz .,"


def save_checkpoint(folder: Path, kind: str, settings: dict) -> torch.nn.Module:
    """A model with weights large enough for its tokens to differ, saved to `folder`; each letter a token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(1)
    config = getattr(transformers, kind)(**SHAPE, **settings, bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.1 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
        if settings.get("tie_word_embeddings"):  # or each token would be followed by itself
            model.get_input_embeddings().weight.mul_(0.05)
    model.save_pretrained(folder)
    vocabulary = {letter: index for index, letter in enumerate(LETTERS)}
    vocabulary |= {f"<{index}>": index for index in range(len(LETTERS), SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=".").save_pretrained(folder)
    return model


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
