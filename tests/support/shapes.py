"""Shapes of blocks by whether they are causal, as test cases say it."""

from __future__ import annotations

from ringexp.planning import BlockShape


def shape_of(causal: bool) -> BlockShape:
    """Return the shape of a causal or a full block."""
    return BlockShape.CAUSAL if causal else BlockShape.FULL
