"""Green contexts: a rank limits its own streams to part of the SMs (hetero.throttle=green_context).

    with green_contexts(device) as limit:
        grant = limit(50)
        model(...)                     # on the current stream, which is grant.stream: limited
        limit(25)                      # from here on another current stream, with less

The SMs of a kernel are those of the context in which its *stream* was created. Inside the block the current
stream belongs to the green context, so work in the current stream is limited, even if NCCL or cudaSetDevice
change the thread's current context. Not limited are

- streams made elsewhere: the default stream by name, `torch.cuda.Stream()`, NCCL's own;
- other threads, which begin on the default stream;
- a CUDA graph captured on its own side stream: capture with `torch.cuda.graph(g, stream=grant.stream)`.

torch before 2.11 has no streams of green contexts. There the context itself is made current, and the limited
stream is the default stream of the thread. Then NCCL and cudaSetDevice remove the limit, leaving the block
raises an error, and the limit cannot change.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringexp.errors import UserError
from ringexp.hetero.applied import AppliedThrottle, Throttle
from ringexp.hetero.sm_count import check_grant, stream_sm_count

if TYPE_CHECKING:
    import torch
    from torch.cuda.green_contexts import GreenContext

_RULES = {6: (1, 1), 7: (2, 2), 8: (2, 4)}  # compute capability: granule, least count (CUDA driver API)
_RULE_SINCE_9 = (8, 8)


class GreenContexts(Throttle):
    """Limit the SMs of this rank's current stream, at a percentage that can change."""

    @contextmanager
    def on_rank(self, percentage: float, device: str | torch.device) -> Iterator[AppliedThrottle]:
        """Limit the current stream for the time of the block."""

        def apply(percentage: float, limit: Callable[[float], SmGrant]) -> AppliedThrottle:
            grant = limit(percentage)
            return AppliedThrottle(
                self.spec,
                percentage,
                grant.sm_count,
                grant.sm_total,
                stream=grant.stream,
                change=lambda _, changed: apply(changed, limit),
            )

        with green_contexts(device) as limit:
            yield apply(percentage, limit)


@dataclass(frozen=True)
class SmGrant:
    """The SMs that a rank may use.

    Attributes:
        sm_count: SMs granted to the rank.
        sm_total: SMs of the device.
        stream: the limited stream; None if no stream is limited.
    """

    sm_count: int
    sm_total: int
    stream: torch.cuda.Stream | None


def sm_granule(capability_major: int) -> int:
    """Return the number that divides every SM count on devices of this compute capability."""
    return _RULES.get(capability_major, _RULE_SINCE_9)[0]


def sms_to_request(percentage: float, sm_total: int, capability_major: int) -> int:
    """Return the nearest SM count to a percentage that a green context can have."""
    granule, least = _RULES.get(capability_major, _RULE_SINCE_9)
    wanted = round(percentage * sm_total / 100)
    nearest = (2 * wanted + granule) // (2 * granule) * granule
    return min(max(nearest, least), sm_total // granule * granule)


@contextmanager
def green_contexts(device: str | torch.device) -> Iterator[Callable[[float], SmGrant]]:
    """Limit the SMs of the calling thread's current stream for the time of the block.

    After the block the former stream is current again, and waits for the block's work.

    Yields:
        A function `limit(percentage)`, which makes a stream with that part of the device's SMs current. The
        stream waits for the work of the stream before. Contexts are made when first used and then kept, since
        memory and graphs belong to their streams. `limit` raises UserError if torch or the driver cannot
        limit, and RuntimeError if the granted SMs are far from the percentage.
    """
    import torch

    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    properties = torch.cuda.get_device_properties(index)
    total, granule = properties.multi_processor_count, sm_granule(properties.major)
    outside = torch.cuda.current_stream(index)
    made: dict[int, tuple[GreenContext, SmGrant]] = {}
    current: list[GreenContext] = []  # the thread's own context, if contexts have no streams

    def limit(percentage: float) -> SmGrant:
        if current:
            raise UserError(
                "hetero.throttle=green_context: this torch has no streams of green contexts, so a rank's "
                "limit cannot change; update torch, or use hetero.drift.kind=none"
            )
        if percentage == 100:
            _switch(outside, index)
            return SmGrant(total, total, None)
        requested = sms_to_request(percentage, total, properties.major)
        if requested not in made:
            torch.cuda.synchronize(index)  # the device's own context has to exist first
            context = _create(requested, index)
            if hasattr(context, "Stream"):
                stream = context.Stream()
            else:
                context.set_context()
                current.append(context)
                stream = torch.cuda.current_stream(index)
            granted = stream_sm_count(stream.cuda_stream) or requested
            check_grant("green_context", percentage, granted, total, granule)
            made[requested] = (context, SmGrant(granted, total, stream))
        _, grant = made[requested]
        assert grant.stream is not None
        if not current:
            _switch(grant.stream, index)
        return grant

    try:
        yield limit
    finally:
        if current:
            current[0].pop_context()
            torch.cuda.set_stream(outside)
        else:
            _switch(outside, index)
            for _, grant in made.values():
                assert grant.stream is not None
                grant.stream.synchronize()  # its context may go now


def _switch(stream: torch.cuda.Stream, index: int) -> None:
    """Make a stream current. It waits for the work of the stream that was current."""
    import torch

    before = torch.cuda.current_stream(index)
    if stream != before:
        stream.wait_stream(before)
        torch.cuda.set_stream(stream)


def _create(num_sms: int, index: int) -> GreenContext:
    """Make a green context of `num_sms` SMs. Raises UserError if torch or the driver cannot."""
    instead = "use hetero.throttle=mps or none"
    try:
        module = importlib.import_module("torch.cuda.green_contexts")
    except ImportError as error:
        raise UserError(
            f"hetero.throttle=green_context: this torch has no green contexts; update it or {instead}"
        ) from error
    if not getattr(module, "SUPPORTED", True):
        raise UserError(
            f"hetero.throttle=green_context: this torch was built without green contexts; {instead}"
        )
    try:
        return module.GreenContext.create(num_sms=num_sms, device_id=index)
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"hetero.throttle=green_context: {num_sms} SMs of cuda:{index} were refused ({why}); {instead}"
        ) from error
