"""Which runs share ranks, which references they need, and what becomes of runs when ranks fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ringexp.app import ExecutionSite, execute, rank_sets
from ringexp.config import AttentionModelConfig, Config, HeteroConfig, PartitionerConfig
from ringexp.errors import Interrupted, RunFailed, UserError
from ringexp.report.console import Console
from ringexp.tracking.completed import CompletedRuns, fingerprint
from ringexp.tracking.files import begin, write_status
from ringexp.tracking.outcomes import outcome_of
from ringexp.tracking.references import ReferenceStore
from support.results import read_content, whole_results


def sets_of(tmp_path, *heteros):
    runs = [
        (
            Config(
                model=AttentionModelConfig(name="tiny"),
                hetero=hetero,
                device="cpu",
                output_root=str(tmp_path),
            ),
            Path(f"run{index}"),
        )
        for index, hetero in enumerate(heteros)
    ]
    return rank_sets(runs, ExecutionSite(num_gpus=0, command=[]))


def test_paced_ranks_take_up_every_profile_and_its_references(tmp_path):
    profiles = [[50.0, 100.0], [100.0, 20.0], [100.0, 100.0]]
    (ranks,) = sets_of(tmp_path, *(HeteroConfig(percentages) for percentages in profiles))
    runs = [job for job in ranks.jobs if job.role == "run"]
    assert [job.config.hetero.percentages for job in runs] == profiles
    assert [job.throttle for job in runs] == ["cpu_pacing", "cpu_pacing", "none"]
    roles = [job.role for job in ranks.jobs]
    assert roles[:4] == ["single", "homogeneous", "even", "run"]
    assert roles.count("single") == roles.count("homogeneous") == 1


def test_equal_ranks_are_their_own_even_reference(tmp_path):
    (ranks,) = sets_of(tmp_path, HeteroConfig([100.0, 100.0], "none"))
    assert [job.role for job in ranks.jobs] == ["single", "homogeneous", "run"]


def test_other_numbers_of_ranks_and_other_throttles_have_ranks_of_their_own(tmp_path):
    sets = sets_of(
        tmp_path,
        HeteroConfig([50.0, 100.0]),
        HeteroConfig([50.0, 100.0, 100.0]),
        HeteroConfig([50.0, 100.0], "cpu_quota"),
        HeteroConfig([25.0, 100.0], "cpu_quota"),
    )
    assert [(ranks.throttle, ranks.world_size) for ranks in sets] == [
        ("cpu_pacing", 2),
        ("cpu_pacing", 3),
        ("cpu_quota", 2),
        ("cpu_quota", 2),
    ]


RING = {"latency_ms_median": 2.0, "spread": 0.0}
SINGLE = {"latency_ms_median": 4.0, "latency_ms_back_to_back": 4.0, "speed_tflops": 1.0}
PLACE = ExecutionSite(num_gpus=0, command=["ringexp"])


def config_of(root: Path, throttle: str = "auto", **settings) -> Config:
    hetero = HeteroConfig([50.0, 100.0], throttle)
    model = AttentionModelConfig(name="tiny")
    return Config(model=model, hetero=hetero, device="cpu", output_root=str(root), **settings)


def remember(config: Config, *kinds: str) -> None:
    """Store references of these kinds, as an earlier call of ringexp has measured them."""
    store = ReferenceStore(config.references_dir)
    for ranks in rank_sets([(config, Path("run"))], PLACE, own_references=True):
        for job in ranks.jobs:
            if job.role in kinds:
                for kind, facts in job.references.items():
                    store.put(kind, facts, SINGLE if kind == "single" else RING, "an earlier call")


def roles(config: Config, own_references: bool = False) -> list[list[str]]:
    sets = rank_sets([(config, Path("run"))], PLACE, own_references)
    return [[job.role for job in ranks.jobs] for ranks in sets]


ALL = ["single", "homogeneous", "even"]


def test_a_single_run_checks_a_stored_reference_before_it(tmp_path):
    config = config_of(tmp_path)
    remember(config, *ALL)
    assert roles(config) == [["spot check of even", "run"]]
    config.calibration.spot_check = False
    assert roles(config) == [["run"]]


def test_a_profile_that_is_new_checks_by_the_full_speed_ring(tmp_path):
    config = config_of(tmp_path)
    remember(config, "single", "homogeneous")
    assert roles(config) == [["spot check of homogeneous", "even", "run"]]


def test_what_the_runs_own_ranks_cannot_check_is_measured_anew(tmp_path):
    config = config_of(tmp_path, "cpu_quota")
    remember(config, "single", "homogeneous")
    assert roles(config) == [["single", "homogeneous"], ["even", "run"]]
    remember(config, *ALL)
    assert roles(config) == [["spot check of even", "run"]]


def test_a_sweep_measures_its_own_references_each_once(tmp_path):
    config = config_of(tmp_path)
    remember(config, *ALL)
    runs = [(replace(config, seed=0, partitioner=PartitionerConfig(p)), Path(p)) for p in ("lut", "uneven")]
    (ranks,) = rank_sets(runs, PLACE, own_references=True)
    assert [job.role for job in ranks.jobs] == [*ALL, "run", "run"]
    assert {job.invocation for job in ranks.jobs if job.role == "run"} == {ranks.invocation}
    (other,) = rank_sets(runs, PLACE, own_references=True)
    assert other.invocation != ranks.invocation


def test_refreshing_speeds_refreshes_references(tmp_path):
    config = config_of(tmp_path)
    remember(config, *ALL)
    config.calibration.mode = "refresh"
    assert roles(config) == [[*ALL, "run"]]


def test_damaged_references_are_measured_again(tmp_path):
    config = config_of(tmp_path)
    remember(config, *ALL)
    for path in config.references_dir.iterdir():
        path.write_text("[]")
    assert roles(config) == [[*ALL, "run"]]


def test_an_even_run_of_a_sweep_is_the_even_reference(tmp_path):
    runs = [
        (replace(config_of(tmp_path), partitioner=PartitionerConfig(name)), Path(name))
        for name in ("even", "lut")
    ]
    (ranks,) = rank_sets(runs, PLACE, own_references=True)
    assert [job.role for job in ranks.jobs] == ["single", "homogeneous", "run", "run"]


@pytest.mark.parametrize(("device", "transport", "devices"), [("cpu", "gloo", 2), ("cuda", "nccl", 8)])
def test_ranks_know_how_many_devices_there_are(tmp_path, device, transport, devices):
    place = ExecutionSite(
        num_gpus=8, num_nodes=2, command=["ringexp"], nodes={device: [{"cpu": "A"}, {"cpu": "B"}]}
    )
    config = replace(config_of(tmp_path, "none"), device=device, hetero=HeteroConfig([100.0, 100.0], "none"))
    ranks = rank_sets([(config, Path("run"))], place)[-1]
    assert (ranks.num_devices, ranks.transport) == (devices, transport)


def test_without_references_none_is_taken(tmp_path):
    config = config_of(tmp_path)
    remember(config, *ALL)
    ((job,),) = (ranks.jobs for ranks in rank_sets([(replace(config, references=False), Path("run"))], PLACE))
    assert job.references == {}


def test_a_gpu_run_without_gpus_is_refused_before_it(tmp_path):
    ranks = Ranks(run=finish)
    result = carry_out(replace(config_of(tmp_path, "none"), device="cuda"), tmp_path / "run", ranks)
    assert "no CUDA device is visible" in str(result)
    assert ranks.done == []


def test_a_graph_is_refused_where_auto_means_gloo(tmp_path):
    config = replace(
        config_of(tmp_path), device="cuda", hetero=HeteroConfig([100.0] * 3, "none"), cuda_graph=True
    )
    ranks = Ranks(run=finish)
    machines = {"cuda": [{"cpu": "A"}, {"cpu": "B"}]}
    place = ExecutionSite(num_gpus=2, num_nodes=2, run_ranks=ranks, command=["ringexp"], nodes=machines)
    (result,) = execute([(config, tmp_path / "run")], Console(), site=place)
    assert "cuda_graph=true needs CUDA with transport=nccl or ipc" in str(result)
    assert "transport=gloo" in str(result)
    assert ranks.done == []


def test_two_runs_of_a_sweep_in_one_folder_are_refused(tmp_path):
    runs = [(config_of(tmp_path, seed=seed), tmp_path / "run") for seed in (0, 1)]
    with pytest.raises(UserError, match=r"2 runs of the sweep have the same folder .*hydra\.sweep\.subdir"):
        execute(runs, Console(), sweep=True, site=PLACE)
    assert not (tmp_path / "run").exists()


class Ranks:
    """Stands in for the ranks: it does each job by what a test says of its role, and notes it."""

    def __init__(self, **does) -> None:
        self.does, self.done = does, []

    def __call__(self, ranks, workdir, display) -> None:
        workdir.mkdir(parents=True)
        with (workdir / "rank_set.progress").open("w") as progress:
            for index, job in enumerate(ranks.jobs):
                progress.write(json.dumps({"job": index}) + "\n")
                progress.flush()
                self.done.append(job.role)
                what = self.does.get(job.role.split()[0])
                if what and what(job, ranks) is False:
                    return


def finish(job, ranks) -> None:
    (job.run_dir / "config.yaml").touch()
    write_status(job.run_dir, "complete", whole_results(key=job.key))


def carry_out(config: Config, run_dir: Path, ranks: Ranks, sweep: bool = False):
    (result,) = execute([(config, run_dir)], Console(), sweep, replace(PLACE, run_ranks=ranks))
    return result


def test_a_rank_that_dies_after_the_results_loses_nothing(tmp_path):
    def die(job, ranks):
        finish(job, ranks)
        raise RunFailed("rank 1 was killed by SIGKILL")

    result = carry_out(config_of(tmp_path), tmp_path / "run", Ranks(run=die))
    assert result.is_complete
    assert read_content(tmp_path / "run")["latency_ms_median"] == 2.5


def test_a_rank_that_dies_before_the_results_is_named(tmp_path):
    def die(job, ranks):
        write_status(job.run_dir, "planned", {"key": job.key})
        raise RunFailed("rank 1 was killed by SIGKILL")

    result = carry_out(config_of(tmp_path), tmp_path / "run", Ranks(run=die))
    assert str(result) == "rank 1 was killed by SIGKILL"


def test_an_interrupt_after_the_results_loses_nothing(tmp_path):
    def stop(job, ranks):
        finish(job, ranks)
        raise Interrupted("Ctrl-C")

    with pytest.raises(Interrupted):
        carry_out(config_of(tmp_path), tmp_path / "run", Ranks(run=stop))
    assert read_content(tmp_path / "run")["status"] == "complete"


def test_ranks_that_cannot_start_leave_no_results_of_an_earlier_run(tmp_path):
    def refuse(job, ranks):
        raise RunFailed("out of memory")

    carry_out(config_of(tmp_path), tmp_path / "run", Ranks(run=finish))
    assert isinstance(carry_out(config_of(tmp_path), tmp_path / "run", Ranks(run=refuse)), RunFailed)
    assert read_content(tmp_path / "run")["status"] == "failed"
    assert json.loads((tmp_path / "run" / "results.previous.json").read_text())["status"] == "complete"


def test_a_reference_that_is_off_is_measured_anew_before_the_run(tmp_path):
    config = config_of(tmp_path)
    remember(config, *ALL)
    ranks = Ranks(spot=lambda job, ranks: False, run=finish)
    assert carry_out(config, tmp_path / "run", ranks).is_complete
    assert ranks.done == ["spot check of even", *ALL, "run"]


def test_a_reference_that_holds_is_followed_by_the_run(tmp_path):
    config = config_of(tmp_path)
    remember(config, *ALL)
    ranks = Ranks(run=finish)
    assert carry_out(config, tmp_path / "run", ranks).is_complete
    assert ranks.done == ["spot check of even", "run"]


def test_an_equal_complete_run_is_not_made_again_in_a_sweep(tmp_path):
    config = config_of(tmp_path)
    first = Ranks(run=finish)
    carry_out(config, tmp_path / "first", first, sweep=True)
    machine = PLACE.machine("cpu")
    assert CompletedRuns(config.completed_dir, machine).add(fingerprint(config, {}), tmp_path / "first")
    second = Ranks(run=finish)
    result = carry_out(config, tmp_path / "second", second, sweep=True)
    assert second.done == []
    assert result.resumed_from == str(tmp_path / "first")
    begin(tmp_path / "first")
    write_status(tmp_path / "first", "complete", whole_results(key="another-run"))
    carry_out(config, tmp_path / "third", second, sweep=True)
    assert second.done == [*ALL, "run"]


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (whole_results(exact=False, why_inexact="off by 3"), "off by 3"),
        (whole_results(exact="no"), "the output is not that of one process"),
        ({"status": "failed", "reason": "killed"}, "killed"),
        ({"status": "planned"}, "ended without results"),
        ([], "ended without results"),
    ],
)
def test_what_is_not_complete_and_right_has_failed(tmp_path, results, why):
    (tmp_path / "results.json").write_text(json.dumps(results))
    came_to = outcome_of(tmp_path)
    assert isinstance(came_to, RunFailed)
    assert why in str(came_to)
