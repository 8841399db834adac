"""A transport for one process, to measure compute without any transfer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch

from ringexp.ring.pending import PendingShard
from ringexp.ring.transport import RingPass, Transport, lay_out, shard_shape


class LoopbackTransport(Transport):
    """A ring of one process: in place of the shards that would arrive come repetitions of its own.

    announces, lays_out: as of the transport whose rings it stands for: whether shards are announced before
    they are whole, and whether the rank's own is copied to be sent. Here everything is there at once.
    """

    name = "loopback"
    capturable = True

    def __init__(self, rank: int = 0, announces: bool = False, lays_out: bool = False) -> None:
        super().__init__(rank)
        self.announces, self._lays_out = announces, lays_out
        self._repeated: dict[tuple[object, ...], torch.Tensor] = {}

    def circulate(self, k: torch.Tensor, v: torch.Tensor, ring_pass: RingPass) -> Generator[PendingShard]:
        sources = self.arrival_order(ring_pass.tokens)
        if self._lays_out and len(sources) > 1:
            lay_out(k, v, k.new_empty(shard_shape(k, k.shape[1])))
        for source in sources:
            if source == self.rank:
                yield PendingShard.local(source, k, v)
            else:
                shard = self._of_length(k, v, ring_pass.tokens[source])
                yield PendingShard(source, lambda shard=shard: shard)

    def _of_length(self, k: torch.Tensor, v: torch.Tensor, length: int) -> torch.Tensor:
        """Return the shard repeated to another length. It is made once, so that only compute is measured."""
        key = (length, k.shape, k.dtype)
        if key not in self._repeated:
            index = torch.arange(length, device=k.device) % k.shape[1]
            shard = k.new_empty(shard_shape(k, length))
            for x, into in zip((k, v), shard, strict=True):
                torch.index_select(x, 1, index, out=into)
            self._repeated[key] = shard
        return self._repeated[key]

    def exchange(
        self,
        sends: Mapping[int, torch.Tensor],
        receives: Mapping[int, torch.Tensor],
        sizes: Sequence[Sequence[int]],
    ) -> None:
        raise AssertionError("a ring of one has no peers")

    def barrier(self) -> None: ...
