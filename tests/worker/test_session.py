"""The behaviour of ranks when one of them cannot answer the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringexp.calibration.rows import SpeedRow
from ringexp.errors import UserError
from ringexp.ring.timing import HopTiming, IterationTiming
from ringexp.tracking.accuracy import Accuracy
from ringexp.tracking.results import References
from support.sessions import asked_rank_zero, attention_config, tell_in_turn


@pytest.mark.parametrize(
    ("error", "outcomes"),
    [
        (None, [("answer", "{'ms': 0.1}")] * 2),
        (UserError("move the table away"), [("UserError", "move the table away")] * 2),
        (KeyError("x"), [("KeyError", "'x'"), ("PeerFailed", "rank 0 failed: KeyError: 'x'")]),
        (
            OSError(28, "full"),
            [("OSError", "[Errno 28] full"), ("PeerFailed", "rank 0 failed: OSError: [Errno 28] full")],
        ),
    ],
    ids=["answer", "user error", "bug", "full disk"],
)
def test_what_rank_zero_raises_every_rank_raises(pools, tmp_path: Path, error, outcomes):
    assert pools[2].run(asked_rank_zero, attention_config(tmp_path, "none", 2), error) == outcomes


def test_ranks_exchange_every_kind_that_jobs_tell(pools, tmp_path):
    row = SpeedRow("cpu", "none", 100.0, 1, "tiny", 64, 32, 0.5, 1.5, 0.1, 5, "2026-03-02T10:00:00+00:00", "")
    timing = IterationTiming(1.0, 0.5, [HopTiming(0, 0.0, 0.5)], [0.1])
    values = [[row], (timing, 0.5), Accuracy(0.1, 0.1, 0.1, 0.1, 1.0), References(even_ms=2.0), None]
    config = attention_config(tmp_path, "none", 2)
    assert pools[2].run(tell_in_turn, config, values) == [[[value, value] for value in values]] * 2
