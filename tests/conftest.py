"""Fixtures shared by all tests; those that need a CUDA device or SLURM are skipped where there is none."""

import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import settings

from support.pool import RankPool

settings.register_profile("any_machine", deadline=None)  # others may keep this one busy
settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, RankPool]]:
    """Rank pools by world size, started when first asked for."""

    class Pools(dict):
        def __missing__(self, world_size: int) -> RankPool:
            self[world_size] = RankPool(world_size)
            return self[world_size]

    started: dict[int, RankPool] = Pools()
    yield started
    for pool in started.values():
        pool.close()


def has_slurm() -> bool:
    """Tell whether jobs can be submitted from here."""
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_slurm = [item for item in items if item.get_closest_marker("slurm")]
    if for_slurm and not has_slurm():
        for item in for_slurm:
            item.add_marker(pytest.mark.skip(reason="needs SLURM (scripts/slurm_dev_cluster.sh start)"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
