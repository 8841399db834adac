"""A dry run plans by measured speeds only where they are of the ranks that it would start."""

from dataclasses import replace

import pytest

from ringexp.app import run
from ringexp.calibration.rows import SpeedRow
from ringexp.calibration.table import SpeedTable
from ringexp.config import (
    AttentionModelConfig,
    Config,
    FmsModelConfig,
    HeteroConfig,
    LayoutConfig,
    PartitionerConfig,
)
from ringexp.machine import cores_per_rank, cpu_name
from ringexp.models.registry import model_of


def measured_here(config: Config, **other) -> list[SpeedRow]:
    """Calibration rows of this machine for every percentage, the slower rank four times as slow."""
    row = SpeedRow(
        hardware=f"{cpu_name()} x{cores_per_rank(config.world_size)}",
        throttle="cpu_pacing",
        percentage=50.0,
        ranks_per_device=1,
        shape=f"{model_of(config.model).speed_key}-sdpa",
        length=config.seq_len,
        tokens=config.seq_len // 2,
        speed_tflops=1.0,
        time_ms=4.0,
        spread=0.0,
        samples=5,
        measured_at="2026-03-01",
        versions="",
    )
    row = replace(row, **other)
    return [row, replace(row, percentage=100.0, speed_tflops=4.0, time_ms=1.0)]


def dry_run(tmp_path, partitioner: str, rows) -> list[int]:
    config = Config(
        model=AttentionModelConfig(name="tiny"),
        hetero=HeteroConfig([50.0, 100.0]),
        partitioner=PartitionerConfig(partitioner),
        device="cpu",
        output_root=str(tmp_path),
        dry_run=True,
        seq_len=1000,
        tile=1,
    )
    SpeedTable(config.speeds_file).add(rows(config))
    return run(config, tmp_path / "run").tokens


def test_a_dry_run_plans_by_what_was_measured_here(tmp_path, capsys):
    tokens = dry_run(tmp_path, "lut", measured_here)
    assert tokens == [200, 800]
    assert "speeds are from the calibration table" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows",
    [
        lambda config: measured_here(config, hardware="another CPU"),
        lambda config: measured_here(config, throttle="cpu_quota"),
        lambda config: measured_here(config, shape="another-model-sdpa"),
        lambda config: measured_here(config, co_tenants="50"),
        lambda config: measured_here(config)[:1],
        lambda config: measured_here(config) + measured_here(config, ranks_per_device=2),
    ],
    ids=["machine", "throttle", "model", "neighbours", "one percentage alone", "two kinds"],
)
def test_a_dry_run_takes_no_speeds_of_anything_else(tmp_path, capsys, rows):
    tokens = dry_run(tmp_path, "lut", rows)
    assert tokens == pytest.approx([333, 667], abs=1)
    assert "speeds are not known here" in capsys.readouterr().out


def test_a_dry_run_by_cost_needs_rows_of_costs(tmp_path, capsys):
    dry_run(tmp_path, "balanced", measured_here)
    assert "speeds are not known here" in capsys.readouterr().out


def test_a_language_model_is_planned_as_causal(tmp_path, capsys):
    config = Config(
        model=FmsModelConfig("llama_micro"),
        hetero=HeteroConfig([100.0, 100.0]),
        partitioner=PartitionerConfig("even"),
        layout=LayoutConfig("contiguous"),
        device="cpu",
        output_root=str(tmp_path),
        dry_run=True,
        seq_len=4096,
    )
    run(config, tmp_path / "run")
    assert "Attention work per rank: 25.0 %, 75.0 %" in capsys.readouterr().out
