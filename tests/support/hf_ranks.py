"""Functions that ranks of a test pool run with the Hugging Face example. Ranks import them by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import transformers

import ringexp

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def example() -> ModuleType:
    """Return the example of the documentation, imported once."""
    path = Path(__file__).parents[2] / "docs" / "examples" / "hf_transformers.py"
    if "hf_example" not in sys.modules:
        spec = importlib.util.spec_from_file_location("hf_example", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["hf_example"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["hf_example"]


def tiny(kind: str, settings: dict[str, Any]) -> Any:
    """Return a tiny model of the configuration class `kind`, with equal random weights in every process."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE | settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.inference_mode()
def ring_errors(rank: int, cases: list[tuple[str, dict[str, Any]]], seq_len: int) -> list[str | float]:
    """Return per model the largest error of the last logits over their spread, or why it is refused."""
    last_logits = example().last_logits
    plan = ringexp.plan(range(1, dist.get_world_size() + 1), seq_len)
    ids = torch.randint(1, 96, (2, seq_len), generator=torch.Generator().manual_seed(4))
    found: list[str | float] = []
    for kind, settings in cases:
        model = tiny(kind, settings)
        model.set_attn_implementation("eager")
        alone = model(ids, use_cache=False).logits[:, -1]
        model.set_attn_implementation("ringexp")
        try:
            ring = last_logits(model, ids, plan, rank)
            found.append(((ring - alone).abs().max() / (alone.max() - alone.min())).item())
        except ringexp.UserError as error:
            found.append(str(error))
    return found
