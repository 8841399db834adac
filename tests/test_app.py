"""Which runs share ranks."""

from pathlib import Path

from ringexp.app import Place, rank_sets
from ringexp.config import AttentionModelConfig, Config, HeteroConfig


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
    return rank_sets(runs, Place(num_gpus=0, command=[]))


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
