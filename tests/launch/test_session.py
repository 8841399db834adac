"""What ranks find out about each other before a run: real processes, one of which is really slower."""

from ringexp.launch.planning import plan_for
from support import sessions
from support.sessions import attention_config


def test_measured_gives_two_devices_of_one_name_their_own_speeds(pools, tmp_path):
    config = attention_config(tmp_path, "measured", 2, seq_len=512)
    known = pools[2].run(sessions.speeds, config, [100, 25])
    assert known[0] == known[1]
    fast, slow = ({row.hardware for row in rows} for rows in known[0].rows)
    assert (len(fast), len(slow), len(fast | slow)) == (1, 1, 2)
    shares = plan_for(config, known[0], "cpu", causal=True).shares
    assert shares[0] > 1.5 * shares[1]


def test_without_it_devices_of_one_name_are_taken_for_equal(pools, tmp_path):
    config = attention_config(tmp_path, "none", 2, seq_len=512)
    known, _ = pools[2].run(sessions.speeds, config, [100, 25])
    assert len(set(known.lut())) == 1


def test_ranks_agree_on_what_a_hop_costs(pools, tmp_path):
    config = attention_config(tmp_path, "none", 3)
    costs = pools[3].run(sessions.hop_cost, config)
    assert costs[0] == costs[1] == costs[2]
    assert costs[0].time_ms(10_000) > 0


def test_hops_are_not_measured_where_nothing_may_be(pools, tmp_path):
    config = attention_config(tmp_path, "none", 2)
    config.calibration.mode = "table"
    assert pools[2].run(sessions.hop_cost, config) == [None, None]
