"""Decoding as part of a job: its speed, what it takes, and whether its tokens are right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile

import torch

from ringexp.config import Config
from ringexp.models.checkpoints.folder import end_tokens, load_tokenizer
from ringexp.models.inputs import LocalInputs, local_inputs
from ringexp.models.registry import model_of
from ringexp.models.workload import Generator, TextModel, Workload
from ringexp.ring.loop import RingContext
from ringexp.tracking.metrics import Decoding
from ringexp.worker.session import Session


@dataclass(frozen=True)
class Decoded:
    """What one rank has seen of decoding."""

    tokens: list[list[int]]  # new ones, a list a sequence
    ms_per_token: float
    kept: int
    cache_bytes: int


def decode(session: Session, generator: Generator, local: LocalInputs, count: int) -> Decoded:
    """Prefill once more, now with a cache, and decode `count` tokens; all members of the ring call it.

    The first token is prefill's, the second warms up (and is captured as a graph), the others are timed.
    """
    ring = generator.ring
    ring.clock.start()
    tokens = [generator.prefill(local, count)]
    ring.clock.stop()
    began = 0.0
    for index in range(1, count):
        ring.clock.start()
        tokens.append(generator.next_token(tokens[-1]).clone())
        ring.clock.stop()
        if index == 1:
            session.synchronize()
            began = time.perf_counter()
    session.synchronize()
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


def decode_together(
    session: Session,
    config: Config,
    workload: Workload,
    ring: RingContext,
    x: torch.Tensor,
    speeds: Sequence[float],
    room: Sequence[int | None],
) -> list[Decoded | None]:
    """What every rank has seen, None for one that is not in the ring; x is the whole prompt.

    speeds, room: tokens that a rank's memory holds; they decide who keeps a new one.
    """
    session.progress.stage(f"decoding {config.decode_tokens} tokens")
    session.barrier()
    mine = None
    if ring.plan.tokens[session.rank]:
        local = local_inputs(x, ring.plan, session.rank)
        generator = text_model_of(workload).generator(ring, speeds, room)
        mine = decode(session, generator, local, config.decode_tokens)
    everyone = session.gather(asdict(mine) if mine else None)
    return [Decoded(**seen) if seen else None for seen in everyone]


def tokens_agreeing(
    session: Session,
    workload: Workload,
    parts: Sequence[torch.Tensor],
    ranks: Sequence[Decoded | None],
    checker: int,
) -> int:
    """How many tokens the rank `checker` alone would have chosen too; parts: the prompt without padding."""
    mine, agreeing = ranks[session.rank], 0
    if session.rank == checker:
        assert mine is not None
        tokens = torch.tensor(mine.tokens, device=session.device).split([len(x) for x in parts])
        agreeing = sum(map(text_model_of(workload).agreeing, parts, tokens))
    return session.gather(agreeing)[checker]


def decoding_figures(
    ranks: Sequence[Decoded | None],
    agreeing: int | None,
    single_ms: float | None,
    contexts: tuple[int, int] | None,
    texts: list[str],
) -> Decoding:
    """The figures of all ranks; contexts: the longest that fit all of them, and one of them."""
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
    ends = end_tokens(checkpoint, tokenizer)
    return [
        tokenizer.decode(list(takewhile(lambda token: token not in ends, tokens))) for tokens in sequences
    ]
