"""What ranks do when one of them cannot answer the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringexp.errors import UserError
from support.sessions import asked_rank_zero, attention_config


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
