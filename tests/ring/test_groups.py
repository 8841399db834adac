"""Which transport fits a group, and what is said of one that does not."""

import pytest
import torch

from ringexp.errors import UserError
from ringexp.ring import groups

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BOTH = {"cpu": "gloo", "cuda": "nccl"}


@pytest.mark.parametrize(
    ("backends", "device", "reach", "fitting"),
    [
        (BOTH, GPU, True, "ipc"),
        (BOTH, GPU, False, "nccl"),
        (BOTH, CPU, True, "gloo"),
        ({"cuda": "nccl"}, GPU, True, "nccl"),
        ({"cpu": "gloo", "cuda": "gloo"}, GPU, False, "gloo"),
        ({"cpu": "gloo", "cuda": "gloo"}, GPU, True, "ipc"),
    ],
)
def test_auto_is_what_the_groups_backends_can_do(monkeypatch, backends, device, reach, fitting):
    monkeypatch.setattr(groups, "_backends", lambda _: backends)
    monkeypatch.setattr(groups, "_all_reach", lambda *_: reach)
    assert groups._fitting(None, device) == fitting


@pytest.mark.parametrize(
    ("name", "device", "backends", "message"),
    [
        ("mpi", CPU, BOTH, "transport=mpi is unknown; choose one of"),
        ("nccl", CPU, BOTH, "transport=nccl needs CUDA, but the tensors are on cpu"),
        ("ipc", CPU, BOTH, "transport=ipc needs CUDA"),
        ("nccl", GPU, {"cpu": "gloo"}, "transport=nccl needs a group with cuda:nccl"),
        ("gloo", CPU, {"cuda": "nccl"}, "transport=gloo needs a group with cpu:gloo"),
        ("gloo", GPU, {"cuda": "nccl"}, "transport=gloo needs a group with cpu:gloo"),
    ],
)
def test_a_transport_that_cannot_work_is_refused(name, device, backends, message):
    with pytest.raises(UserError, match=message):
        groups._check(name, device, backends)


@pytest.mark.parametrize(("name", "device"), [("nccl", GPU), ("ipc", GPU), ("gloo", CPU), ("gloo", GPU)])
def test_a_transport_that_works_is_not(name, device):
    groups._check(name, device, BOTH)


@pytest.mark.parametrize(
    ("initialised", "backends", "place"), [(True, BOTH, CPU), (True, {"cuda": "nccl"}, GPU), (False, {}, GPU)]
)
def test_numbers_meet_on_the_host_where_gloo_is_there(monkeypatch, initialised, backends, place):
    monkeypatch.setattr(groups, "_resolved", lambda _: object() if initialised else None)
    monkeypatch.setattr(groups, "_backends", lambda _: backends)
    assert groups.meeting_place(GPU) == place
