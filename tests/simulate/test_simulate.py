"""`ringexp simulate`: rings by spec sheets, at recorded costs, and finished runs replayed."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from ringexp.calibration.table import SpeedTable
from ringexp.cli import simulate as command
from ringexp.configure.named_models import named_model, named_shape
from ringexp.models.registry import model_of
from ringexp.planning import EqualLinks, Link, Mask, RankCost, make_plan, predicted_ms
from ringexp.ring.timing import IterationTiming
from ringexp.simulate.hardware import load_hardware
from ringexp.simulate.rings import Split, run, timings
from ringexp.simulate.specified import ring_of_devices
from support.calibration_rows import cost_rows
from support.run_folders import write_iterations, write_run

COSTS = [RankCost(0.1, 1e-4, 1e-6, 1e-7), RankCost(0.2, 2e-4, 2e-6, 2e-7)]
HOP = EqualLinks(Link(0.05, 1e-4))


def recorded(links: EqualLinks) -> dict[str, object]:
    """Return links as results record them."""
    return {"latency_ms": links.link.latency_ms, "token_ms": links.link.unit_ms, "direct": links.direct}


def simulated(monkeypatch, capsys, *arguments: object):
    """Return the output of the command with --json."""
    monkeypatch.setattr(sys, "argv", ["simulate", *map(str, arguments), "--json"])
    command.main()
    return json.loads(capsys.readouterr().out)


def ring(devices: str, seq_len: int = 65536, model: str = "attention_mha_4096", **options):
    hardware = load_hardware()
    return ring_of_devices(hardware.ring(devices), hardware, named_shape(model), seq_len, **options)


@pytest.fixture
def sweep(tmp_path):
    """Two finished runs that took exactly what they cost, and one without costs."""
    for number, partitioner in enumerate(("even", "lut")):
        tokens = [2048, 2048] if partitioner == "even" else [2688, 1408]
        latency_ms = predicted_ms(make_plan(4096, tokens), COSTS, HOP)
        plan = make_plan(4096, tokens)
        busy = [
            cost.time_ms(count, plan.pairs(rank), plan.causal_pairs(rank))
            for rank, (cost, count) in enumerate(zip(COSTS, tokens, strict=True))
        ]
        folder = write_run(
            tmp_path,
            number,
            partitioner=partitioner,
            latency_ms=latency_ms,
            tokens=tokens,
            costs=[asdict(cost) for cost in COSTS],
            hop=recorded(HOP),
            num_units=1,
        )
        write_iterations(folder, [[IterationTiming(latency_ms, busy_ms) for busy_ms in busy]])
    write_run(tmp_path, 2, partitioner="formula")
    return tmp_path


def test_runs_that_took_what_they_cost_are_replayed_without_error(monkeypatch, capsys, sweep):
    found = simulated(monkeypatch, capsys, "--runs", sweep)
    assert len(found["runs"]) == 2
    assert found["error_median"] == pytest.approx(0, abs=1e-9)
    assert found["error_at_own_speeds_p95"] == pytest.approx(0, abs=1e-9)


def test_what_calibration_got_wrong_is_told_from_what_the_timeline_got_wrong(monkeypatch, capsys, tmp_path):
    """All computing took twice as long as its costs said: only the first error shows it."""
    tokens = [2048, 2048]
    plan, slow = make_plan(4096, tokens), [cost.slower(2.0) for cost in COSTS]
    busy = [cost.time_ms(2048, plan.pairs(rank), plan.causal_pairs(rank)) for rank, cost in enumerate(slow)]
    costs = [asdict(cost) for cost in COSTS]
    latency_ms = predicted_ms(plan, slow, HOP)
    figures = {"costs": costs, "hop": recorded(HOP), "num_units": 1, "tokens": tokens}
    folder = write_run(tmp_path, latency_ms=latency_ms, **figures)
    write_iterations(folder, [[IterationTiming(latency_ms, busy_ms) for busy_ms in busy]])
    (row,) = simulated(monkeypatch, capsys, "--runs", tmp_path)["runs"]
    assert row["error"] == pytest.approx(-0.5, abs=0.02)
    assert row["error_at_own_speeds"] == pytest.approx(0, abs=1e-9)


def test_the_ranks_of_a_run_can_be_split_otherwise(monkeypatch, capsys, sweep):
    (folder,) = sweep.glob("0_*")
    arguments = ("--costs", folder, "--seq-len", 4096, "--partitioner", "even,balanced", "--tile", 16)
    even, balanced = simulated(monkeypatch, capsys, *arguments)["simulated"]
    assert even["latency_ms"] == pytest.approx(predicted_ms(make_plan(4096, [2048, 2048]), COSTS, HOP))
    assert balanced["latency_ms"] < even["latency_ms"]
    assert balanced["capacity_efficiency"] > even["capacity_efficiency"]


def test_costs_of_a_calibration_table(monkeypatch, capsys, tmp_path):
    shape = f"{model_of(named_model('attention_mha_4096')).speed_key}-cudnn"
    for percentage, cost in ((100.0, COSTS[0]), (50.0, COSTS[1])):
        rows = cost_rows(cost, [4096], Mask.causal())
        SpeedTable(tmp_path / "speeds.csv").add(
            [replace(row, percentage=percentage, shape=shape) for row in rows]
        )
    arguments = ("--costs", tmp_path / "speeds.csv", "--percentages", "100,50", "--seq-len", 4096)
    (one,) = simulated(monkeypatch, capsys, *arguments, "--hop", "50:163.84", "--partitioner", "even")[
        "simulated"
    ]
    hop = EqualLinks(Link(0.05, 2 * 32 * 128 * 2 / 163.84e6))
    assert one["latency_ms"] == pytest.approx(predicted_ms(make_plan(4096, [2048] * 2), COSTS, hop), rel=1e-3)


def test_one_device_alone_has_nothing_to_lose():
    one = run(ring("H200"), Split("even", "zigzag", 65536))
    assert one.capacity_efficiency == pytest.approx(1.0)
    assert one.latency_ms == pytest.approx(ring("H200").alone_ms(65536)[0])


def test_equal_devices_share_long_prompts_almost_without_loss():
    one = run(ring("4xH100", 1 << 20), Split("lut", "zigzag", 1 << 20))
    assert one.tokens == [1 << 18] * 4
    assert 0.97 < one.capacity_efficiency <= 1.0


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_no_ring_of_unequal_devices_passes_what_their_capacity_allows(layout):
    for partitioner in ("even", "uneven", "lut", "balanced"):
        one = run(ring("2xH100,A100,L40"), Split(partitioner, layout, 65536))
        assert sum(one.tokens) == 65536
        assert 0 < one.capacity_efficiency <= 1.0
        assert one.latency_ms >= max(one.compute_ms, one.transfer_ms) * (1 - 1e-9)


def test_balanced_leaves_devices_out_of_a_short_prompt():
    one = run(ring("8xH100,8xL40", 4096), Split("balanced", "zigzag", 4096))
    even = run(ring("8xH100,8xL40", 4096), Split("even", "zigzag", 4096))
    assert one.members < 9
    assert one.tokens[8:] == [0] * 8
    assert one.latency_ms < even.latency_ms


def test_layers_follow_each_other():
    whole = run(ring("2xH100", model="llama3_8b"), Split("even", "zigzag", 65536))
    assert whole.latency_ms / named_shape("llama3_8b").layers == pytest.approx(
        ring("2xH100", model="llama3_8b").ideal_ms(65536), rel=0.05
    )


def test_slower_links_between_nodes_and_copies_from_the_owner():
    split = Split("even", "zigzag", 16384)
    fast, slow = (run(ring("16xH100", 16384, across=link), split) for link in ("ib400", "ib200"))
    assert fast.latency_ms < slow.latency_ms
    ((sent_on, direct),) = [
        [run(ring("2xH100,A100", 16384, direct=direct), split) for direct in (False, True)]
    ]
    assert direct.latency_ms <= sent_on.latency_ms


def test_heads_over_a_node_make_it_one_member():
    grouped = run(ring("16xH100", 131072, model="llama3_8b", heads_over=8), Split("lut", "zigzag", 131072))
    plain = run(ring("16xH100", 131072, model="llama3_8b"), Split("lut", "zigzag", 131072))
    assert grouped.tokens == [65536, 65536]
    assert grouped.transfer_ms < plain.transfer_ms
    assert 0 < grouped.capacity_efficiency <= 1.0


def test_timings_are_those_of_a_run():
    unequal = ring("H100,A100")
    split = Split("even", "zigzag", 65536)
    ranks = timings(unequal, split)
    for timing in ranks:
        assert sum(timing.linear_ms) + sum(hop.compute_ms for hop in timing.hops) == pytest.approx(
            timing.busy_ms
        )
        assert timing.latency_ms == pytest.approx(run(unequal, split).latency_ms)
    assert [hop.source for hop in ranks[0].hops] == [0, 1]


def test_lengths_may_have_units(monkeypatch, capsys):
    plain, short = (
        simulated(monkeypatch, capsys, "--devices", "2xH100", "--seq-len", lengths)
        for lengths in ("4096,65536", "4k,64k")
    )
    assert plain == short


def test_hops_are_drawn(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "ring.png"
    simulated(monkeypatch, capsys, "--devices", "2xH100,L40", "--timeline", picture, "--partitioner", "even")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tables_say_who_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulate", "--devices", "8xH100,8xL40", "--seq-len", "4096"])
    command.main()
    output = capsys.readouterr().out
    assert "Simulated: 8 x H100, 8 x L40" in output
    assert "left out" in output


def test_further_devices_come_from_a_file(monkeypatch, capsys, tmp_path):
    sheet = tmp_path / "mine.yaml"
    sheet.write_text(
        "devices:\n"
        "  B1: {datasheet: {bf16_tflops: 100, memory_gbps: 1000, memory_gb: 10}, layer_us: 1, hop_us: 1,\n"
        "       fraction: {attention: 1, causal: 1, linear: 1, memory: 1}, link: mine}\n"
        "links: {mine: {gbps: 10, fraction: 1, latency_us: 0}}\n"
    )
    found = simulated(monkeypatch, capsys, "--hardware", sheet, "--devices", "B1,H100")
    assert found["ranks"] == ["B1", "H100"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--devices", "4xH101"],
            "device H101 is unknown; choose one of H100, H200, A100, L40; did you mean",
        ),
        (["--devices", "0xH100"], "is no COUNTxNAME"),
        (["--devices", "H100", "--model", "llama"], "model llama has no shape here"),
        (["--devices", "H100", "--model", "attention_tiny"], "spec sheets are of 16-bit models"),
        (["--devices", "2xH100", "--partitioner", "best"], "partitioner best is unknown"),
        (["--devices", "2xH100", "--partitioner", "formula"], "formula is a regression"),
        (["--devices", "9xH100", "--transport", "ipc"], "--transport ipc is for one node"),
        (["--devices", "4xH100", "--heads-over", "3"], "--heads-over 3 must divide"),
        (["--devices", "H100,A100", "--heads-over", "2"], "needs equal neighbours"),
        (["--devices", "H100", "--across", "ib"], "link ib is unknown"),
        (["--devices", "H100", "--layout", "spiral"], "layout=spiral is unknown"),
        (["--devices", "H100", "--hardware", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--costs", "nowhere.csv"], "has no hops; give --hop"),
        (["--runs", "nowhere"], "nowhere does not exist"),
        (["--devices", "65xH100", "--timeline", "x.png"], "--timeline draws up to 64 ranks"),
        (["--devices", "H100", "--timeline", "nowhere/x.png"], "nowhere/x.png cannot be written"),
        (["--devices", "H100", "--timeline", "x.png", "--chunks", "2"], "--timeline draws one ring"),
        (["--devices", "H100", "--prefetch-hops", "-1"], "-1 must be at least 0"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["simulate", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_damaged_spec_sheet_is_named(monkeypatch, capsys, tmp_path):
    sheet = tmp_path / "mine.yaml"
    sheet.write_text("devices: {X: {datasheet: {bf16_tflops: 100}}}")
    monkeypatch.setattr(sys, "argv", ["simulate", "--devices", "X", "--hardware", str(sheet)])
    with pytest.raises(SystemExit):
        command.main()
    assert "'fraction' is missing" in capsys.readouterr().err


def test_neither_planning_nor_simulating_imports_torch():
    code = (
        "import sys; from ringexp.cli.simulate import main; "
        "sys.argv = ['simulate', '--devices', 'H100,A100', '--json']; main(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize("seq_len", [1, 2, 3, 7, 10**12])
@pytest.mark.parametrize("devices", ["H100", "H100,A100", "2xH100,3xL40"])
def test_odd_lengths_are_right_or_refused(monkeypatch, capsys, seq_len, devices):
    ranks = len(load_hardware().ring(devices))
    arguments = ("--devices", devices, "--seq-len", seq_len, "--layout", "zigzag,contiguous")
    if seq_len < ranks:
        with pytest.raises(SystemExit) as ended:
            simulated(monkeypatch, capsys, *arguments)
        assert ended.value.code == 2
        assert f"seq_len={seq_len} is smaller than one tile" in capsys.readouterr().err
        return
    for one in simulated(monkeypatch, capsys, *arguments)["simulated"]:
        assert sum(one["tokens"]) == seq_len
        assert 0 < one["capacity_efficiency"] <= 1.000001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "H100", "--seq-len", "0"], "0 must be at least 1"),
        (["--devices", "H100", "--seq-len", "1" + 23 * "0"], "must be at most 1000000000000"),
        (["--devices", "2xH100", "--hop", "nan:1"], "must be at least 0, and above 0, and finite"),
        (["--devices", "2xH100", "--hop", "1:inf"], "must be at least 0, and above 0, and finite"),
        (["--devices", "2xH100", "--hop", "1"], "is not US:GBPS"),
        (["--devices", "99999999xH100"], "a ring of more than 65536 is not simulated"),
        (["--devices", "2xH100", "--timeline", "x.doc"], ".doc is unknown; choose one of .png, .pdf, .svg"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        simulated(monkeypatch, capsys, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
