"""The cost of hops, measured over every transport."""

import pytest

from ringexp.planning import Link
from support.ring_ranks import link_over_stand_ins


@pytest.mark.parametrize("transport", ["nccl", "ipc", "gloo"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_agree_on_a_link_that_costs_something(pools, transport, world_size):
    results = pools[world_size].run(link_over_stand_ins, transport)
    assert len(set(results)) == 1
    for link in results[0]:
        assert link.latency_ms >= 0
        assert link.unit_ms >= 0
        assert link.latency_ms + link.unit_ms > 0


def test_bandwidth_is_the_other_side_of_the_time_a_byte():
    assert Link(0.1, 1e-5).gbps == pytest.approx(0.1)  # 1e5 bytes a ms
    assert Link(0.1, 0.0).gbps is None
