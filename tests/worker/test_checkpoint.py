"""A job asks once per model how far its checkpoint is from Hugging Face's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ringexp.models.checkpoints.check import CheckpointCheck
from ringexp.worker.checkpoint import with_checkpoint_check


@dataclass(frozen=True)
class Result:
    """The fields of a run's result that the check may change."""

    exact: bool | None = True
    why_inexact: str | None = None
    error_checkpoint: float | None = None


@dataclass
class StandIn:
    """A setting on one rank whose comparison comes to `check`."""

    check: CheckpointCheck
    asked: list[torch.Tensor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def setting(self, checkpoint: str | None = "DIR", check: bool = True) -> Any:

        def compare(x: torch.Tensor) -> CheckpointCheck:
            self.asked.append(x)
            return self.check

        text_model = SimpleNamespace(
            checkpoint=checkpoint, checkpoint_check=None, compare_with_hugging_face=compare
        )
        session = SimpleNamespace(
            rank=0,
            communicator=SimpleNamespace(gather=lambda value: [value]),
            progress=SimpleNamespace(stage=lambda text: None, warn=self.warnings.append),
        )
        return SimpleNamespace(
            session=session,
            config=SimpleNamespace(check=check),
            workload=SimpleNamespace(text_model=text_model),
            checker=0,
            x=torch.arange(6).view(2, 3),
            plan=SimpleNamespace(starts=(1, 0)),
        )


def test_two_jobs_of_a_model_compare_it_once():
    stand_in = StandIn(CheckpointCheck(error=1e-7))
    setting = stand_in.setting()
    results = [with_checkpoint_check(setting, Result()) for _ in range(2)]  # type: ignore[arg-type]
    assert [(each.exact, each.error_checkpoint) for each in results] == [(True, 1e-7)] * 2
    (x,) = stand_in.asked
    assert x.tolist() == [[1, 2]]  # the first prompt, without its padding


def test_a_difference_makes_the_result_inexact():
    setting = StandIn(CheckpointCheck(error=0.5)).setting()
    result = with_checkpoint_check(setting, Result())  # type: ignore[arg-type]
    assert result.exact is False
    assert "checkpoint DIR is computed otherwise" in (result.why_inexact or "")
    earlier = Result(exact=False, why_inexact="the ring is at fault")
    assert with_checkpoint_check(setting, earlier).why_inexact == earlier.why_inexact  # type: ignore[arg-type]


def test_a_check_that_is_left_out_is_said_once():
    stand_in = StandIn(CheckpointCheck(left_out="too little memory"))
    setting = stand_in.setting()
    results = [with_checkpoint_check(setting, Result()) for _ in range(2)]  # type: ignore[arg-type]
    assert [(each.exact, each.error_checkpoint) for each in results] == [(True, None)] * 2
    (warning,) = stand_in.warnings
    assert warning == "checkpoint DIR was not compared with Hugging Face's: too little memory"


@pytest.mark.parametrize("how", [{"checkpoint": None}, {"check": False}])
def test_without_checkpoint_or_check_nothing_changes(how):
    stand_in, result = StandIn(CheckpointCheck(error=0.5)), Result()
    assert with_checkpoint_check(stand_in.setting(**how), result) is result  # type: ignore[arg-type]
    assert stand_in.asked == []
