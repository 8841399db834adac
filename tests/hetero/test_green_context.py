from __future__ import annotations

import contextlib
import sys
import types

import pytest
import torch

from ringexp.errors import UserError
from ringexp.hetero import green_context as module
from ringexp.hetero.green_context import sms_to_request
from ringexp.hetero.throttle import rank_throttle


class FakeStream:
    cuda_stream = 7

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self._calls = calls

    def wait_stream(self, other: FakeStream) -> None:
        self._calls.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self._calls.append(f"synchronize {self.name}")


class FakeGpu:
    """132 SMs, one current stream, and a torch.cuda.green_contexts that records what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, with_streams: bool) -> None:
        self.calls: list[str] = []
        self.current = FakeStream("before", self.calls)
        self.refuse: str | None = None
        self.granted: int | None = None
        self.fake_module = types.ModuleType("green_contexts")
        self.fake_module.SUPPORTED = True
        self.fake_module.GreenContext = types.SimpleNamespace(create=self.create)
        self._with_streams = with_streams
        properties = types.SimpleNamespace(multi_processor_count=132, major=9)
        for name, value in {
            "get_device_properties": lambda index: properties,
            "current_device": lambda: 0,
            "current_stream": lambda index: self.current,
            "set_stream": self.set_stream,
            "stream": self.stream,
            "synchronize": lambda index: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setitem(sys.modules, "torch.cuda.green_contexts", self.fake_module)
        monkeypatch.setattr(module, "stream_sm_count", lambda stream: self.granted)

    def create(self, *, num_sms: int, device_id: int) -> types.SimpleNamespace:
        if self.refuse:
            raise RuntimeError(self.refuse)
        self.calls.append(f"create {num_sms} on {device_id}")
        if self._with_streams:
            return types.SimpleNamespace(Stream=lambda: FakeStream("green", self.calls))
        return types.SimpleNamespace(set_context=self.set_context, pop_context=self.pop_context)

    def set_stream(self, stream: FakeStream) -> None:
        self.current = stream

    @contextlib.contextmanager
    def stream(self, stream: FakeStream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def set_context(self) -> None:
        self.calls.append("set")
        self.current = FakeStream("default", self.calls)

    def pop_context(self) -> None:
        self.calls.append("pop")


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu(monkeypatch, with_streams=True)


@pytest.fixture
def old_gpu(monkeypatch):
    """A torch whose green contexts have no streams."""
    return FakeGpu(monkeypatch, with_streams=False)


@pytest.mark.parametrize(
    ("percentage", "total", "major", "num_sms"),
    [
        (90, 132, 9, 120),
        (50, 132, 9, 64),
        (25, 132, 9, 32),
        (10, 132, 9, 16),
        (1, 132, 9, 8),
        (99, 132, 9, 128),
        (50, 148, 10, 72),
        (50, 142, 8, 72),
        (1, 108, 8, 4),
        (10, 80, 7, 8),
        (3, 56, 6, 2),
    ],
)
def test_sms_are_rounded_to_what_the_hardware_has(percentage, total, major, num_sms):
    assert sms_to_request(percentage, total, major) == num_sms


def test_inside_the_current_stream_is_the_limited_one(gpu):
    with rank_throttle("green_context", 50, "cuda:1") as applied:
        assert gpu.calls[0] == "create 64 on 1"
        assert applied.stream is gpu.current
        assert gpu.current.name == "green"


def test_work_is_ordered_with_the_stream_outside(gpu):
    with rank_throttle("green_context", 50, "cuda:0"):
        gpu.calls.append("work")
    order = ["green waits for before", "work", "before waits for green", "synchronize green"]
    assert gpu.calls[1:] == order
    assert gpu.current.name == "before"


def test_a_changed_percentage_is_another_stream_after_the_work_of_the_first(gpu):
    with rank_throttle("green_context", 50, "cuda:0") as applied:
        first, gpu.current.name = gpu.current, "first"
        slower = applied.changed(25)
        second, gpu.current.name = gpu.current, "second"
        assert gpu.calls[-2:] == ["create 32 on 0", "green waits for first"]
        assert (slower.percentage, slower.sm_count, slower.stream) == (25, 32, second)
        assert slower.changed(25) is slower
        again = slower.changed(50)
        assert (again.stream, gpu.current) == (first, first)
        assert gpu.calls[-1] == "first waits for second"
        assert [call for call in gpu.calls if "create" in call] == ["create 64 on 0", "create 32 on 0"]
    assert gpu.calls[-3:] == ["before waits for first", "synchronize first", "synchronize second"]
    assert gpu.current.name == "before"


def test_full_speed_is_the_stream_outside(gpu):
    with rank_throttle("green_context", 100, "cuda:0") as applied:
        slow = applied.changed(50)
        assert gpu.current.name == "green"
        full = slow.changed(100)
        assert (full.stream, full.sm_count, gpu.current.name) == (None, 132, "before")
        assert gpu.calls[-1] == "before waits for green"


def test_without_green_streams_a_percentage_cannot_change(old_gpu):
    with rank_throttle("green_context", 50, "cuda:0") as applied:
        with pytest.raises(UserError, match="a rank's limit cannot change; update torch"):
            applied.changed(25)
    assert old_gpu.current.name == "before"


def test_an_exception_leaves_the_stream_as_it_was(gpu):
    with pytest.raises(ValueError, match="boom"), rank_throttle("green_context", 50, "cuda:0"):
        raise ValueError("boom")
    assert gpu.current.name == "before"
    assert gpu.calls[-1] == "synchronize green"


def test_the_sms_the_driver_granted_are_reported(gpu):
    gpu.granted = 72
    with rank_throttle("green_context", 50, "cuda") as applied:
        assert (applied.sm_count, applied.sm_total, applied.emulated) == (72, 132, False)
        assert applied.achieved == pytest.approx(72 / 132)


def test_the_sms_asked_for_are_reported_if_the_driver_does_not_tell(gpu):
    with rank_throttle("green_context", 50, "cuda:0") as applied:
        assert applied.sm_count == 64


def test_a_grant_far_from_what_was_asked_raises(gpu):
    gpu.granted = 132
    with pytest.raises(RuntimeError, match="green_context did not take effect"):
        with rank_throttle("green_context", 50, "cuda:0"):
            pass
    assert gpu.current.name == "before"


def test_a_full_speed_rank_has_no_green_context(gpu):
    with rank_throttle("green_context", 100, "cuda:0") as applied:
        assert gpu.calls == []
        assert (applied.sm_count, applied.sm_total, applied.stream) == (132, 132, None)


def test_without_green_streams_the_context_is_made_current(old_gpu):
    with rank_throttle("green_context", 50, "cuda:0") as applied:
        assert old_gpu.calls == ["create 64 on 0", "set"]
        assert applied.stream is old_gpu.current
    assert old_gpu.calls[-1] == "pop"
    assert old_gpu.current.name == "before"


def test_without_green_streams_an_exception_pops_the_context(old_gpu):
    with pytest.raises(ValueError, match="boom"), rank_throttle("green_context", 50, "cuda:0"):
        raise ValueError("boom")
    assert old_gpu.calls[-1] == "pop"
    assert old_gpu.current.name == "before"


def test_a_refusal_by_the_driver_is_the_users_to_fix(gpu):
    gpu.refuse = "cuda driver too old to use green context!\nException raised from ..."
    with pytest.raises(UserError) as caught, rank_throttle("green_context", 50, "cuda:0"):
        pass
    assert "(cuda driver too old to use green context!); use hetero.throttle=mps" in str(caught.value)


def test_a_torch_built_without_green_contexts_is_named(gpu):
    gpu.fake_module.SUPPORTED = False
    with pytest.raises(UserError, match=r"^hetero.throttle=green_context: this torch was built without"):
        with rank_throttle("green_context", 50, "cuda:0"):
            pass


def test_a_torch_before_green_contexts_is_named(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.cuda.green_contexts", None)
    with pytest.raises(UserError, match=r"this torch has no green contexts"):
        with rank_throttle("green_context", 50, "cuda:0"):
            pass
