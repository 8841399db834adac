"""Events that time hops on CUDA."""

from __future__ import annotations

import torch

from ringexp.ring.timing import Origin


def since(begun: torch.cuda.Event, ended: torch.cuda.Event, origin: Origin) -> tuple[float, float]:
    """Return when a hop began and how long it took, in ms; with an `Origin` left open, a `Transfer`."""
    assert origin.event is not None
    return origin.event.elapsed_time(begun), begun.elapsed_time(ended)


def nothing(origin: Origin) -> tuple[float, float]:
    """Return the times of a hop for which nothing was carried; a `Transfer`."""
    return 0.0, 0.0


def recorded() -> torch.cuda.Event:
    """Return a timed event, recorded on the current stream; in a graph at every replay.

    An event that is recorded while a graph is captured must live as long as the graph, which points to it.
    """
    event = torch.cuda.Event(enable_timing=True, external=True)
    event.record()
    return event
