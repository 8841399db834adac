"""Flags in device memory by which the ranks of one machine signal each other.

The current CUDA stream sets flags and waits for them, so the host never blocks and a CUDA graph can capture
it. A wait also clears the flag.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ringexp.ring import cuda_driver as driver
from ringexp.ring.ipc_memory import BARRIER, READY, TAKEN, PeerMemory


class Signals:
    """This rank's end of the flags of all ranks."""

    def __init__(self, rank: int, device: torch.device, memory: PeerMemory) -> None:
        self._rank, self._device, self._memory = rank, device, memory
        self._barriers = 0

    def publish(self, peers: Sequence[int], pieces: range = range(1)) -> None:
        """Tell peers that pieces of this rank's shard are there for them."""
        self._set([self._memory.flag(peer, READY + piece, self._rank) for piece in pieces for peer in peers])

    def wait_for(self, source: int, pieces: int = 1) -> None:
        """Wait until all pieces of a source's shard are there for this rank."""
        self._wait([self._memory.flag(self._rank, READY + piece, source) for piece in range(pieces)])

    def give_back(self, sources: Sequence[int]) -> None:
        """Tell sources that this rank has read their shards."""
        self._set([self._memory.flag(source, TAKEN, self._rank) for source in sources])

    def reclaim(self, peers: Sequence[int]) -> None:
        """Wait until peers have read the shard that this rank last had for them."""
        self._wait([self._memory.flag(self._rank, TAKEN, peer) for peer in peers])

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        flag = BARRIER + self._barriers % 2  # a peer may reach the next barrier before this rank leaves this
        self._barriers += 1
        peers = self._memory.peers
        self._set([self._memory.flag(peer, flag, self._rank) for peer in peers])
        self._wait([self._memory.flag(self._rank, flag, peer) for peer in peers])

    def _set(self, addresses: Sequence[int]) -> None:
        driver.flags(torch.cuda.current_stream(self._device), raised=addresses)

    def _wait(self, addresses: Sequence[int]) -> None:
        driver.flags(torch.cuda.current_stream(self._device), awaited=addresses)
