"""A rank's process reads the place that its launcher gave it."""

import pytest

from ringexp.worker.rank_place import RankPlace


@pytest.mark.parametrize("launcher_pid", [None, 17])
def test_a_place_survives_the_environment(monkeypatch, launcher_pid):
    place = RankPlace(rank=1, world_size=3, local_rank=0, cpu_threads=2, launcher_pid=launcher_pid)
    for name, value in place.to_environment().items():
        monkeypatch.setenv(name, value)
    assert RankPlace.from_environment() == place
