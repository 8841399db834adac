"""Speeds that ranks measure of each other before a run: real processes, one of which is really slower."""

from dataclasses import replace

import pytest
import torch

from ringexp.calibration.table import SpeedTable
from ringexp.configure.resolve import resolve
from ringexp.planning import Mask, plan_for
from ringexp.worker.speed_meter import enough_in_a_row
from support import sessions
from support.sessions import attention_config


def test_measured_gives_two_devices_of_one_name_their_own_speeds(pools, tmp_path):
    config = attention_config(tmp_path, "measured", 2, seq_len=512)
    known = pools[2].run(sessions.speeds, config, [100, 10])
    assert known[0] == known[1]
    fast, slow = ({row.hardware for row in rows} for rows in known[0].rows)
    assert (len(fast), len(slow), len(fast | slow)) == (1, 1, 2)
    shares = plan_for(resolve(config, 0).plan_request, known[0]).shares
    assert shares[0] > 1.5 * shares[1]


def test_without_it_devices_of_one_name_are_taken_for_equal(pools, tmp_path):
    config = attention_config(tmp_path, "none", 2, seq_len=512)
    known, _ = pools[2].run(sessions.speeds, config, [100, 25])
    assert len(set(known.lut())) == 1
    report = told(tmp_path)
    assert report.count("hetero=measured") == 1
    assert "rank 1 takes" in report


def test_ranks_that_are_slowed_down_are_not_told_to_differ(pools, tmp_path):
    config = attention_config(tmp_path, "cpu_pacing", 2, seq_len=512)
    config.hetero.percentages = [50.0, 50.0]
    pools[2].run(sessions.speeds, config, [50, 10])
    assert "hetero=measured" not in told(tmp_path)


def test_a_rank_beside_another_is_not_taken_for_one_that_is_alone(pools, tmp_path):
    config = attention_config(tmp_path, "none", 3, seq_len=512)
    config.hetero.percentages = [50.0, 20.0, 50.0]
    known, *others = pools[3].run(sessions.speeds, config, [25, 25, 100], True, ["a", "a", "b"])
    assert all(other == known for other in others)
    assert [{row.co_tenants for row in rows} for rows in known.rows] == [{"20"}, {"50"}, {""}]
    assert known.lut()[2] != known.lut()[0]  # though both are at 50 %
    assert known.costs(Mask.causal())[2] != known.costs(Mask.causal())[0]
    others = {(row.length, row.tokens) for row in known.rows[0] if row.others == 2}
    assert others == {(512, 256)}  # the rest is two ranks'


def test_ranks_agree_on_what_a_hop_costs(pools, tmp_path):
    config = attention_config(tmp_path, "none", 3)
    costs = pools[3].run(sessions.hop_cost, config)
    assert costs[0] == costs[1] == costs[2]
    assert costs[0].link.time_ms(10_000) > 0


def test_hops_are_not_measured_where_nothing_may_be(pools, tmp_path):
    config = attention_config(tmp_path, "none", 2)
    config.calibration.mode = "table"
    assert pools[2].run(sessions.hop_cost, config) == [None, None]


def told(tmp_path) -> str:
    """Return the reports of rank 0 since the last call."""
    file = tmp_path / "progress"
    text = file.read_text()
    file.unlink()
    return text


def test_a_rank_that_has_become_slower_is_noticed_and_measured_anew(pools, tmp_path):
    config = attention_config(tmp_path, "measured", 2, seq_len=512)
    pools[2].run(sessions.speeds, config, [100, 100])
    assert "checking" not in told(tmp_path)  # nothing was stored
    table = SpeedTable(config.speeds_file)
    once = [
        replace(row, time_ms=row.time_ms / 1000, spread=0.0)
        for row in table.load()
        if "rank 1" in row.hardware
    ]
    table.add(once)
    known, _ = pools[2].run(sessions.speeds, config, [100, 100])
    report = told(tmp_path)
    assert "rank 1: a stored speed is off" in report
    assert "calibrating" in report
    assert [row.time_ms > 5 * before.time_ms for row, before in zip(known.rows[1], once, strict=True)] == [
        True
    ]


def test_a_length_that_is_off_takes_no_other_length_with_it(pools, tmp_path):
    """One of two stored lengths is far off for rank 1. The other is checked by itself, and stays."""
    short, long = (attention_config(tmp_path, "measured", 2, seq_len=length) for length in (256, 512))
    for config in (short, long):
        config.calibration.tolerance = 20.0  # for whatever else this machine does
    pools[2].run(sessions.speeds_in_turn, [short, long], [100, 100])
    table = SpeedTable(short.speeds_file)
    before = table.load()
    wrong = [
        replace(row, time_ms=row.time_ms / 1e4, spread=0.0)
        for row in before
        if "rank 1" in row.hardware and row.length == 256
    ]
    table.add(wrong)
    told(tmp_path)
    pools[2].run(sessions.speeds_in_turn, [short, long], [100, 100])
    report = told(tmp_path)
    assert "rank 1: a stored speed is off, 256 tokens" in report
    assert "calibrating 1 point(s)" in report
    assert report.count("checking a stored speed") == 2  # 256 was wrong, so 512 does not go by it
    assert report.count("calibrating") == 1
    after = table.load()
    assert {row for row in before if row.length == 512} == {row for row in after if row.length == 512}
    assert not set(wrong) & set(after)


def test_a_damaged_line_is_measured_anew_by_the_ranks(pools, tmp_path):
    config = attention_config(tmp_path, "none", 2, seq_len=256)
    pools[2].run(sessions.speeds, config, [100, 100])
    told(tmp_path)
    lines = config.speeds_file.read_bytes().splitlines(keepends=True)
    config.speeds_file.write_bytes(lines[0] + lines[1][:40] + b"\n")
    known, _ = pools[2].run(sessions.speeds, config, [100, 100])
    report = told(tmp_path)
    assert "1 damaged line(s)" in report
    assert "calibrating 1 point(s)" in report
    assert known.lut()[0] > 0


def test_refreshed_speeds_win_over_rows_from_the_future(pools, tmp_path):
    config = attention_config(tmp_path, "none", 2, seq_len=256)
    pools[2].run(sessions.speeds, config, [100, 100])
    table = SpeedTable(config.speeds_file)
    future = [replace(row, measured_at="2999-01-01T00:00:00+00:00", time_ms=1e-6) for row in table.load()]
    config.speeds_file.unlink()
    table.add(future)
    config.calibration.mode = "refresh"
    known, _ = pools[2].run(sessions.speeds, config, [100, 100])
    assert all(row.time_ms > 1e-3 for row in table.load())
    assert all(row.time_ms > 1e-3 for rows in known.rows for row in rows)


def test_stored_speeds_are_tried_out_once_a_shape(pools, tmp_path):
    first, second = (attention_config(tmp_path, "none", 2, seq_len=length) for length in (256, 512))
    for config in (first, second):
        config.calibration.tolerance = 100.0  # whatever it is, it will do
    pools[2].run(sessions.speeds_in_turn, [first, second], [100, 100])
    told(tmp_path)
    pools[2].run(sessions.speeds_in_turn, [first, second, first], [100, 100])
    assert told(tmp_path).count("checking a stored speed") == 1


def test_a_stored_point_beyond_what_the_model_was_built_for_is_not_tried_out(pools, tmp_path):
    long, short = (attention_config(tmp_path, "none", 2, seq_len=length) for length in (1024, 128))
    pools[2].run(sessions.speeds, long, [100, 100])
    told(tmp_path)
    pools[2].run(sessions.speeds, short, [100, 100])
    report = told(tmp_path)
    assert "checking" not in report
    assert "calibrating 1 point(s)" in report


def test_mode_table_and_a_switched_off_check_measure_nothing(pools, tmp_path):
    config = attention_config(tmp_path, "measured", 2, seq_len=256)
    pools[2].run(sessions.speeds, config, [100, 100])
    told(tmp_path)
    config.calibration.spot_check = False
    pools[2].run(sessions.speeds, config, [100, 20])
    config.calibration.spot_check, config.calibration.mode = True, "table"
    pools[2].run(sessions.speeds, config, [100, 20])
    report = told(tmp_path)
    assert "checking" not in report
    assert "calibrating" not in report


def test_speeds_of_other_software_are_measured_again_but_for_mode_table(pools, tmp_path):
    config = attention_config(tmp_path, "none", 2, seq_len=256)
    pools[2].run(sessions.speeds, config, [100, 100])
    text = config.speeds_file.read_text()
    config.speeds_file.write_text(text.replace(f"torch {torch.__version__}", "torch 1.0"))
    told(tmp_path)
    config.calibration.mode = "table"
    pools[2].run(sessions.speeds, config, [100, 100])
    report = told(tmp_path)
    assert "speeds were measured with torch 1.0, not torch" in report
    assert "calibrating" not in report
    config.calibration.mode = "auto"
    pools[2].run(sessions.speeds, config, [100, 100])
    assert "calibrating" in told(tmp_path)
    assert "torch 1.0" not in config.speeds_file.read_text()


@pytest.mark.parametrize(
    ("unit_ms", "in_a_row"), [(4.0, 8), (24.9, 8), (25.0, 8), (42.0, 5), (110.0, 2), (900.0, 1)]
)
def test_long_units_are_timed_few_in_a_row(unit_ms, in_a_row):
    assert enough_in_a_row(unit_ms, 8) == in_a_row
