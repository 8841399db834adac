"""Fixtures shared by all tests; `gpu` tests are skipped with a reason where there is no CUDA device."""

from collections.abc import Iterator

import pytest

from support.pool import RankPool


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
