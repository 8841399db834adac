"""Work of a test pool's ranks with whole models; importable, so that it travels to them by name."""

from __future__ import annotations

import copy
from unittest.mock import patch

import torch

from ringexp.kernels import get_kernel
from ringexp.models.fms.strategy import RingModel
from ringexp.ring.clock import NoClock
from ringexp.ring.context import RingContext
from support.ring_ranks import transport

VARIANTS = {"llama": "micro", "granite": "8b", "mixtral": "8x7b", "mistral": "7b", "qwen3": "0.6b"}
LLAMA = {"nlayers": 2, "emb_dim": 64, "nheads": 4, "kvheads": 2, "src_vocab_size": 64}
TINY = {
    "llama": LLAMA,
    "granite": LLAMA | {"head_dim": 16, "attention_multiplier": 0.2, "pad_id": 0},
    "mistral": LLAMA | {"head_dim": 24},
    "qwen3": LLAMA | {"head_dim": 24},
    "mixtral": {
        "nlayers": 2,
        "dim": 64,
        "nheads": 4,
        "kvheads": 2,
        "hidden_dim": 96,
        "num_experts": 4,
        "src_vocab_size": 64,
    },
}
"""Settings of a tiny model of every family."""


def fms_logits(
    rank: int,
    architecture: str,
    overrides: dict,
    block_lens: list[int],
    layout: str,
    last_n_tokens: int,
    dtype: str = "float32",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a tiny random FMS model: through the ring, on this process alone, and that in float32."""
    model = ring_model(rank, architecture, overrides, block_lens, layout, dtype)
    ids = torch.randint(0, 64, (2, sum(block_lens)), generator=torch.Generator().manual_seed(3))
    how = {"use_cache": True, "last_n_tokens": last_n_tokens, "attn_name": "sdpa_causal"}
    with torch.inference_mode():
        ring = model(ids, last_n_tokens=last_n_tokens)
        alone = model.model(ids, **how)[0]
        exact = copy.deepcopy(model.model).float()(ids, **how)[0]
    return ring, alone, exact


def ring_model(
    rank: int,
    architecture: str,
    overrides: dict,
    block_lens: list[int],
    layout: str,
    dtype: str = "float32",
    **how: str,
) -> RingModel:
    """A tiny random FMS model on the ring."""
    from ringexp.models.fms.strategy import get_model

    torch.manual_seed(rank)  # unequal on purpose: the ring has to broadcast the weights
    model = get_model(
        architecture,
        VARIANTS[architecture],
        distributed_strategy="ring",
        block_lens=block_lens,
        layout=layout,
        data_type=getattr(torch, dtype),
        **overrides,
        **how,
    )
    assert isinstance(model, RingModel)
    return model


def ask_for_model(rank: int, arguments: dict) -> str:
    """The UserError that our get_model raises for these arguments."""
    from ringexp.errors import UserError
    from ringexp.models.fms.strategy import get_model

    try:
        get_model("llama", "micro", **arguments)
    except UserError as error:
        return str(error)
    return "no error"


@torch.inference_mode()
def generated(
    rank: int,
    architecture: str,
    overrides: dict,
    block_lens: list[int],
    layout: str,
    lengths: list[int],
    new_tokens: int,
) -> dict[str, torch.Tensor]:
    """Greedy tokens and their logits: by our generate, by FMS's over the ring, and by one process."""
    from fms.utils.generation import generate as fms_generate
    from fms.utils.generation import pad_input_ids

    from ringexp.models.fms.generation import generate

    model = ring_model(rank, architecture, overrides, block_lens, layout)
    random = torch.Generator().manual_seed(3)
    prompts = [torch.randint(1, 64, (length,), generator=random) for length in lengths]
    ids, padding = pad_input_ids(prompts)
    unpadded = min(lengths) == max(lengths)
    how = {"max_new_tokens": new_tokens, "do_sample": False, "use_cache": True}
    seen: dict[str, list[torch.Tensor]] = {"ring": [], "alone": []}

    def watch(name):
        def hook(position, logits, token, kwargs):
            seen[name].append(logits.clone())
            return token, kwargs

        return {"post_iteration_hook": hook, "extra_kwargs": dict(padding)}

    return {
        "ours": generate(model, ids if unpadded else prompts, new_tokens),
        "fms": fms_generate(model, ids, **how, **watch("ring")),
        "alone": fms_generate(model.model, ids, **how, **watch("alone")),
        "logits": torch.stack(seen["ring"]),
        "logits_alone": torch.stack(seen["alone"]),
    }


@torch.inference_mode()
def replayed(
    rank: int, architecture: str, block_lens: list[int], lengths: list[int], new_tokens: int, dtype: str
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """On a GPU: greedy tokens by graphs, by eager steps and by one process; and counts of replays."""
    from fms.utils.generation import generate as fms_generate
    from fms.utils.generation import pad_input_ids

    from ringexp.models.fms.generation import generate
    from ringexp.ring.groups import close
    from ringexp.ring.ipc import IpcTransport

    how = {"device_type": "cuda", "transport": "ipc"}
    model = ring_model(rank, architecture, TINY[architecture], block_lens, "zigzag", dtype, **how)
    random = torch.Generator().manual_seed(3)
    prompts = [torch.randint(1, 64, (length,), generator=random).cuda() for length in lengths]
    tokens, replays, replay = {}, {"graph": 0, "eager": 0}, torch.cuda.CUDAGraph.replay
    for name in replays:

        def counted(graph: torch.cuda.CUDAGraph, name: str = name) -> None:
            replays[name] += 1
            replay(graph)

        with (
            patch.object(IpcTransport, "capturable", name == "graph"),
            patch.object(torch.cuda.CUDAGraph, "replay", counted),
        ):
            tokens[name] = generate(model, prompts, new_tokens).cpu()
    ids, padding = pad_input_ids(prompts)
    padding = {key: x.cuda() for key, x in padding.items()}
    alone = fms_generate(
        model.model,
        ids.cuda(),
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        extra_kwargs=padding,
    )
    close(model.distributed_strategy.group)
    return tokens | {"alone": alone.cpu()}, replays


@torch.inference_mode()
def caches(rank: int, block_lens: list[int], new_tokens: int, reserved: int) -> tuple[list[int], int, int]:
    """After decoding: slots that each rank is said to have filled, slots this one has, and its bytes."""
    model = ring_model(rank, "llama", {"nlayers": 1, "src_vocab_size": 64}, block_lens, "zigzag")
    ids = torch.randint(1, 64, (1, sum(block_lens)), generator=torch.Generator().manual_seed(3))
    logits, cache = model(ids, use_cache=True, last_n_tokens=1, new_tokens=reserved)
    for _ in range(new_tokens):
        logits, cache = model(logits[:, -1:].argmax(-1), past_key_value_states=cache, use_cache=True)
    keys, values = cache[0]
    assert keys.shape == values.shape
    return cache.filled_slots, keys.shape[1], sum(x.untyped_storage().nbytes() for x in (keys, values))


@torch.inference_mode()
def refused(rank: int, case: str) -> str:
    """The UserError of something that generation cannot do."""
    from ringexp.errors import UserError
    from ringexp.models.fms.generation import generate

    model = ring_model(rank, "llama", TINY["llama"] | {"max_expected_seq_len": 64}, [40, 23], "zigzag")
    ids = torch.ones(1, 63, dtype=torch.long)
    try:
        if case == "gaps":
            model(ids, position_ids=2 * torch.arange(63).unsqueeze(0))
        elif case == "mask alone":
            model(ids, mask=torch.zeros(1, 63, 63))
        else:
            generate(model, ids, 3)
    except UserError as error:
        return str(error)
    return "no error"


@torch.inference_mode()
def run_checkpoint(
    rank: int, folder: str, block_lens: list[int], ids: torch.Tensor, new_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits of ids [B, S] through the ring, and their greedy continuation [B, S + new]."""
    from ringexp.models.fms.generation import generate
    from ringexp.models.fms.strategy import get_model

    model = get_model(
        "hf_pretrained",
        model_path=folder,
        max_expected_seq_len=ids.shape[1] + new_tokens,
        distributed_strategy="ring",
        block_lens=block_lens,
        layout="zigzag",
    )
    return model(ids), generate(model, ids, new_tokens)


@torch.inference_mode()
def ring_logits(rank: int, form: str, folder: str, block_lens: list[int], ids: torch.Tensor) -> torch.Tensor:
    """Return all logits of ids [B, S] through the ring. `form`: the way to name the checkpoint to FMS."""
    from ringexp.models.fms.strategy import get_model

    how = {"distributed_strategy": "ring", "block_lens": block_lens}
    if form == "positional":
        return get_model("hf_pretrained", folder, **how)(ids)
    return get_model("hf_pretrained", **{form: folder}, **how)(ids)


@torch.inference_mode()
def chunked_logits(
    rank: int, architecture: str, tokens: list[int], chunks: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits of this rank's last position in chunked prefill, those of one process, and which position."""
    from ringexp.models.fms.generation import prefill_with_cache
    from ringexp.models.inputs import local_inputs
    from ringexp.planning import make_plan

    model = ring_model(rank, architecture, TINY[architecture], tokens, "zigzag").model
    ids = torch.randint(0, 64, (2, sum(tokens)), generator=torch.Generator().manual_seed(3))
    plan = make_plan(sum(tokens), tokens, chunks=chunks)
    kernel = get_kernel("sdpa", "cpu", torch.float32, 16)
    ring = RingContext(plan, rank, transport(), kernel, NoClock())
    local = local_inputs(ids, plan, rank)
    logits, cache = prefill_with_cache(model, local.x, local.positions, ring)
    transport().transfers.take()  # other tests look at theirs
    assert {keys.shape[1] for keys, _ in cache} == {tokens[rank]}
    alone = model(ids, use_cache=True, last_n_tokens=1, attn_name="sdpa_causal")[0]
    return logits, alone, plan.q_shards[rank].last
