"""A rank that fails in a call that all ranks make tells its peers, which end soon and say why."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ringexp.ring.gloo import GlooTransport
from ringexp.ring.ring_group import PeerLost
from ringexp.ring.transport import RingPass
from support.ring_group_ranks import CALLS, FAILING, fail_in, refuse_together, refuse_where_one_has_no_tokens

UNCLOSED = Path(__file__).parents[1] / "support" / "unclosed.py"
REASONS = {
    "tensors": "UserError: rank 1 holds 9 queries and 9 keys of the plan",
    "kernel": "ValueError: no such block",
    "unshard": "UserError: rank 1 holds",
    "measure_speeds": "UserError: kernel=fastest is unknown",
    "get_model": "UserError: layout=striped is unknown",
    "forward": "UserError: last_n_tokens=2 must be 0",
    "generate": "UserError: max_new_tokens=-1 must be",
    "next_token": "UserError: seq_len=44 is beyond",
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fresh", [True, False], ids=["in the first call", "later"])
def test_peers_of_a_rank_that_fails_end_soon_and_say_why(pools, name, fresh):
    for rank, (first, took_s, after, closed) in enumerate(pools[3].run(fail_in, name, fresh)):
        if rank == FAILING:
            assert first.startswith(REASONS[name])
        else:
            assert first.startswith(f"RingError: rank 1 failed: {REASONS[name]}")
            assert first.endswith(f"so the ring has ended on rank {rank}, too")
        assert took_s < 20
        assert "\n" not in first
        assert after.startswith(
            f"RingError: the ring of this group has ended (rank 1 failed: {REASONS[name]}"
        )
        assert "call ringexp.close(group) on all its ranks" in after
        assert closed == "no error"


def test_a_call_that_every_rank_refuses_ends_nothing(pools):
    for told in pools[3].run(refuse_together):
        good, refused, again = told[:3]
        assert good == again == "no error"
        assert refused.startswith("UserError: rank ")
        assert told[3:] == told[:3]


def test_a_rank_that_had_nothing_to_do_hears_of_it_in_the_next_call(pools):
    results = pools[3].run(refuse_where_one_has_no_tokens)
    for rank, (first, after, closed) in enumerate(results):
        assert first.startswith("UserError: rank " if rank < 2 else "no error")
        assert after.startswith("RingError: ")
        assert closed == "no error"


@pytest.mark.parametrize("how", ["well", "fail", "destroy"])
def test_processes_end_that_never_close_their_rings(how):
    """With torchrun, so over a TCPStore."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run([*command, UNCLOSED, how], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RingError: rank 1 failed: UserError: ") == (2 if how == "fail" else 0)


class BrokenLinks:
    """Connections of rank 0 of two, over which nothing comes."""

    def rank(self) -> int:
        return 0

    def send(self, *_: object) -> None:
        raise RuntimeError("Connection reset by peer")

    recv = send


def test_a_hop_that_fails_tells_who_waits_for_its_shard():
    transport = GlooTransport(BrokenLinks())  # type: ignore[arg-type]
    k = torch.zeros(1, 2, 1, 4)
    arriving = transport.circulate(k, k, RingPass([2, 2]))
    next(arriving)
    shard = next(arriving)
    with pytest.raises(PeerLost, match="Connection reset by peer"):
        shard.receive()
    transport.close()
