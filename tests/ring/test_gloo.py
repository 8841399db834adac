"""The CPU transport forwards as far ahead as it may, and tells every waiting rank if a hop fails."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ringexp.ring.gloo import GlooTransport
from ringexp.ring.transport import RingPass, Transport

TOKENS = [2, 3, 0, 4, 5]


class Scripted(GlooTransport):
    """Rank 1 of a ring whose other ranks do not exist: hop by hop, tensors of the hop's number arrive."""

    def __init__(self) -> None:  # without a group
        Transport.__init__(self, rank=1)
        self._forwarder = ThreadPoolExecutor(max_workers=1)
        self.hops, self.fails_at = [], 0

    def _swap(self, sends, receives):
        self.hops.append((sends, receives))
        if len(self.hops) == self.fails_at:
            raise ConnectionError(f"hop {self.fails_at} broke")
        for tensor in receives.values():
            tensor.fill_(len(self.hops))


@pytest.fixture
def ring():
    transport = Scripted()
    yield transport
    transport.close()


def keys() -> torch.Tensor:
    return torch.zeros(1, TOKENS[1], 2, 4)


def hops_after_a_while(ring: Scripted, least: int) -> int:
    began = time.monotonic()
    while len(ring.hops) < least and time.monotonic() - began < 10:
        time.sleep(0.001)
    time.sleep(0.02)
    return len(ring.hops)


def test_each_hop_sends_what_the_one_before_brought(ring):
    shards = ring.circulate(keys(), keys(), RingPass(TOKENS))
    arrived = [(shard.source, shard.receive()) for shard in shards]
    assert [source for source, _ in arrived] == [1, 0, 4, 3]
    for hop, (source, shard) in enumerate(arrived[1:], start=1):
        assert shard.shape == (2, 1, TOKENS[source], 2, 4)
        assert (shard == hop).all()
    for hop, (sends, receives) in enumerate(ring.hops):
        assert (list(sends), list(receives)) == ([3], [0])
        assert sends[3].shape[2] == TOKENS[[1, 0, 4][hop]]
        assert (sends[3] == hop).all()
    assert len(ring.transfers.take()) == 3
    assert ring.transfers.take() == []


@pytest.mark.parametrize(("prefetch_hops", "ahead"), [(1, 1), (2, 2), (None, 3)])
def test_no_more_hops_than_allowed_are_ahead_of_what_was_taken(ring, prefetch_hops, ahead):
    arriving = ring.circulate(keys(), keys(), RingPass(TOKENS, prefetch_hops))
    next(arriving)
    assert hops_after_a_while(ring, ahead) == ahead
    for taken in (1, 2, 3):
        next(arriving).receive()
        expected = min(ahead + taken, 3)
        assert hops_after_a_while(ring, expected) == expected
    assert next(arriving, None) is None


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_hop_that_fails_tells_all_who_wait(ring, fails_at):
    ring.fails_at = fails_at
    arriving = ring.circulate(keys(), keys(), RingPass(TOKENS))
    shards = list(arriving)[1:]
    for hop, shard in enumerate(shards, start=1):
        if hop < fails_at:
            assert (shard.receive() == hop).all()
        else:
            with pytest.raises(ConnectionError, match=f"hop {fails_at} broke"):
                shard.receive()


def test_a_ring_of_one_forwards_nothing(ring):
    alone = [0, 3, 0]
    for shard in ring.circulate(keys(), keys(), RingPass(alone)):
        assert shard.source == 1
        assert torch.equal(shard.receive()[0], keys())
    assert not ring.hops
    assert ring.transfers.take() == []
