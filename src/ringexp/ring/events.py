"""Events that time hops on CUDA."""

from __future__ import annotations

import torch

from ringexp.ring.timing import Origin


def since(begun: torch.cuda.Event, ended: torch.cuda.Event, origin: Origin) -> tuple[float, float]:
    """A `Transfer`, but for the origin."""
    return origin.event.elapsed_time(begun), begun.elapsed_time(ended)


def nothing(origin: Origin) -> tuple[float, float]:
    """As `since`, of a hop for which nothing was carried."""
    return 0.0, 0.0


def recorded() -> torch.cuda.Event:
    """A timed event, recorded on the current stream; in a graph at every replay.

    Whoever asks for one while a graph is captured must keep it as long as the graph, which keeps a pointer.
    """
    event = torch.cuda.Event(enable_timing=True, external=True)
    event.record()
    return event
