"""A pool of real processes with a gloo group, so that many ring cases share one start-up."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any


class RankPool:
    """`run(function, *arguments)` calls function(rank, *arguments) in every process, returns all results."""

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._store = tempfile.NamedTemporaryFile(prefix="ringexp-test-store-")  # noqa: SIM115
        self._processes, self._pipes = [], []
        for rank in range(world_size):
            here, there = context.Pipe()
            arguments = (rank, world_size, self._store.name, there)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(here)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, arguments))
        replies = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(120), f"rank {rank} does not answer"
            replies.append(pipe.recv())
        errors = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(replies) if error]
        assert not errors, "\n".join(errors)
        return [result for _, result in replies]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._store.close()


def _serve(rank: int, world_size: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((None, function(rank, *arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))
