"""Decoding as part of a job: its speed, its cache, and whether its tokens are right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile

import torch

from ringexp.config import Config
from ringexp.configure.prompts import has_prompt
from ringexp.models.checkpoints.folder import end_tokens, load_tokenizer
from ringexp.models.inputs import LocalInputs, local_inputs, unpadded
from ringexp.models.registry import model_of
from ringexp.models.workload import Generator, TextModel, Workload
from ringexp.planning import longest_context
from ringexp.tracking.results import Decoding
from ringexp.worker.device import synchronize
from ringexp.worker.measure import short_collections
from ringexp.worker.prepare import PreparedJob


@dataclass(frozen=True)
class Decoded:
    """What one rank has seen of decoding.

    Attributes:
        tokens: the new tokens of each sequence.
        ms_per_token: the time of one new token of all sequences.
        kept: the number of new tokens whose keys and values this rank keeps.
        cache_bytes: bytes of this rank's keys and values, of the prompt and of new tokens.
    """

    tokens: list[list[int]]
    ms_per_token: float
    kept: int
    cache_bytes: int


def measure_decoding(job: PreparedJob) -> Decoding | None:
    """Decode after prefill; None with decode_tokens=0. All ranks call this together."""
    if not job.config.decode_tokens:
        return None
    with job.tools.memory.limited(), short_collections():
        ranks = decode_together(job)
    agreeing = _checked_tokens(job, ranks) if job.config.check else None
    limits, contexts = job.tools.memory.limits(), None
    if limits:
        need = job.tools.memory.need
        alone = longest_context(need, [max(limits)], [1.0])
        contexts = longest_context(need, limits, job.plan.shares), alone
    texts = continuations(job.config, ranks) if has_prompt(job.config) else []
    return decoding_figures(ranks, agreeing, job.references.single_decode_ms, contexts, texts)


def decode_together(job: PreparedJob) -> list[Decoded | None]:
    """Return what every rank has seen of decoding; None for a rank that is not in the ring."""
    session, count = job.session, job.config.decode_tokens
    session.progress.stage(f"decoding {count} tokens")
    session.communicator.barrier()
    decoded, ring = None, job.ring()
    if ring.plan.tokens[session.rank]:
        local = local_inputs(job.x, ring.plan, session.rank)
        generator = text_model_of(job.workload).generator(ring, job.speeds, job.max_tokens)
        decoded = decode(session.device, generator, local, count)
    of_ranks = session.communicator.gather(asdict(decoded) if decoded else None)
    return [Decoded(**fields) if fields else None for fields in of_ranks]


def decode(device: torch.device, generator: Generator, local: LocalInputs, count: int) -> Decoded:
    """Prefill once more, now with a cache, and decode `count` tokens. All members of the ring call this.

    The first token is prefill's, the second warms up (and is captured as a graph), the others are timed.
    """
    clock = generator.ring.clock
    clock.start()
    tokens = [generator.prefill(local, count)]
    clock.stop()
    began = 0.0
    for index in range(1, count):
        clock.start()
        tokens.append(generator.next_token(tokens[-1]).clone())
        clock.stop()
        if index == 1:
            synchronize(device)
            began = time.perf_counter()
    synchronize(device)
    elapsed_ms = (time.perf_counter() - began) * 1e3
    return Decoded(
        tokens=torch.cat(tokens, dim=1).tolist(),
        ms_per_token=elapsed_ms / (count - 2),
        kept=generator.kept,
        cache_bytes=generator.cache_bytes,
    )


def text_model_of(workload: Workload) -> TextModel:
    """Return what decodes text in a workload that can."""
    assert workload.text_model is not None, "a single layer generates nothing"
    return workload.text_model


def _checked_tokens(job: PreparedJob, ranks: Sequence[Decoded | None]) -> int:
    """Return how many tokens the checking rank alone would have chosen too. Warn if float32 differs."""
    session = job.session
    decoded, agreeing = ranks[session.rank], 0
    if session.rank == job.checker:
        assert decoded is not None
        parts = unpadded(job.x, job.plan)
        tokens = torch.tensor(decoded.tokens, device=session.device).split([len(x) for x in parts])
        agreeing = sum(map(text_model_of(job.workload).agreeing, parts, tokens))
    agreeing = session.communicator.gather(agreeing)[job.checker]
    total = job.config.decode_tokens * job.x.shape[0]
    if agreeing < total and job.workload.dtype == torch.float32:
        session.progress.warn(f"one process would have chosen only {agreeing} of {total} tokens")
    return agreeing


def decoding_figures(
    ranks: Sequence[Decoded | None],
    agreeing: int | None,
    single_ms: float | None,
    contexts: tuple[int, int] | None,
    texts: list[str],
) -> Decoding:
    """Return the figures of decoding.

    Args:
        ranks: what every rank has seen.
        agreeing: the number of tokens that one process would have chosen too; None if not checked.
        single_ms: the time per token of one full-speed device; None if not known.
        contexts: the longest contexts that fit all ranks together, and the largest of them alone.
        texts: the continuations of real prompts.
    """
    members = [decoded for decoded in ranks if decoded]
    ms_per_token = max(member.ms_per_token for member in members)
    together, alone = contexts or (None, None)
    return Decoding(
        tokens=len(members[0].tokens[0]),
        sequences=len(members[0].tokens),
        ms_per_token=ms_per_token,
        tokens_per_s=len(members[0].tokens) * 1e3 / ms_per_token,
        speedup=None if single_ms is None else single_ms / ms_per_token,
        kept=[decoded.kept if decoded else 0 for decoded in ranks],
        cache_bytes=[decoded.cache_bytes if decoded else 0 for decoded in ranks],
        agreeing=agreeing,
        longest_context=together,
        longest_context_single=alone,
        texts=texts,
    )


def continuations(config: Config, ranks: Sequence[Decoded | None]) -> list[str]:
    """Return the text generated for each prompt, up to the first token that ends a text.

    Only the text ends there: every sequence was decoded, timed and checked to its full length.
    """
    checkpoint = model_of(config.model).checkpoint
    assert checkpoint is not None, "text needs a tokenizer"
    tokenizer = load_tokenizer(checkpoint)
    sequences = next(decoded for decoded in ranks if decoded).tokens
    ends = end_tokens(checkpoint, tokenizer.eos_token_id)
    return [
        tokenizer.decode(list(takewhile(lambda token: token not in ends, tokens))) for tokens in sequences
    ]
