from __future__ import annotations

import time

import pytest
import torch

from ringexp.choices import THROTTLES
from ringexp.errors import UserError
from ringexp.hetero.applied import Throttle
from ringexp.hetero.cgroup import OwnGroup
from ringexp.hetero.sm_count import SM_TOTAL_ENV
from ringexp.hetero.throttle import (
    host_throttle,
    load_throttle,
    rank_throttle,
    resolve_throttle,
    starting_throttle,
    takes_any_profile,
)

FULL, UNEVEN = [100, 100], [100, 50]


class Properties:
    def __init__(self, multi_processor_count: int, major: int = 9) -> None:
        self.multi_processor_count = multi_processor_count
        self.major = major


@pytest.fixture
def sees_sms(monkeypatch):
    """Make torch report this many SMs on any device, of 132."""

    def set_count(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties(count))

    monkeypatch.setenv(SM_TOTAL_ENV, "132")
    monkeypatch.setattr("ringexp.hetero.blas.mend_cublas", lambda device: None)
    return set_count


@pytest.mark.parametrize(
    ("requested", "device_type", "percentages", "name"),
    [
        ("auto", "cuda", FULL, "none"),
        ("auto", "cpu", FULL, "none"),
        ("auto", "cuda", UNEVEN, "mps"),
        ("auto", "cuda", [50, 50], "mps"),
        ("auto", "cpu", UNEVEN, "cpu_pacing"),
        ("none", "cuda", UNEVEN, "none"),
        ("none", "cpu", UNEVEN, "none"),
        ("mps", "cuda", UNEVEN, "mps"),
        ("mps", "cuda", FULL, "none"),
        ("measured", "cuda", FULL, "measured"),
        ("measured", "cpu", FULL, "measured"),
        ("green_context", "cuda", UNEVEN, "green_context"),
        ("cpu_pacing", "cpu", UNEVEN, "cpu_pacing"),
        ("cpu_quota", "cpu", UNEVEN, "cpu_quota"),
    ],
)
def test_resolve_with_mps_installed(fake_mps, requested, device_type, percentages, name):
    assert resolve_throttle(requested, device_type, percentages) == name


def test_auto_takes_green_contexts_where_mps_is_missing(no_mps):
    assert resolve_throttle("auto", "cuda", UNEVEN) == "green_context"


def test_mps_without_its_program_names_what_is_missing_and_what_to_do(no_mps):
    with pytest.raises(UserError) as caught:
        resolve_throttle("mps", "cuda", UNEVEN)
    for part in ("hetero.throttle=mps", "nvidia-cuda-mps-control", "hetero.throttle=green_context or auto"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("requested", "device_type", "allowed"),
    [
        ("cpu_pacing", "cuda", "auto, none, measured, mps, green_context"),
        ("mps", "cpu", "auto, none, measured, cpu_pacing, cpu_quota"),
        ("green_context", "cpu", "auto, none, measured, cpu_pacing, cpu_quota"),
    ],
)
def test_a_throttle_of_the_other_device_is_refused(fake_mps, requested, device_type, allowed):
    with pytest.raises(UserError, match=f"^hetero.throttle={requested} .* device={device_type}") as caught:
        resolve_throttle(requested, device_type, UNEVEN)
    assert str(caught.value).endswith(f"use one of {allowed}")


def test_measured_takes_no_percentages():
    with pytest.raises(UserError, match=r"measured slows nothing, but hetero.percentages=\[100, 50\]"):
        resolve_throttle("measured", "cpu", UNEVEN)


def test_an_unknown_throttle_is_refused():
    with pytest.raises(
        UserError, match=r"hetero.throttle=turtle is unknown; choose one of auto, none, measured"
    ):
        resolve_throttle("turtle", "cpu", UNEVEN)


def test_auto_is_no_throttle_for_a_rank():
    with pytest.raises(UserError, match=r"hetero.throttle=auto is unknown"), rank_throttle("auto", 50, "cpu"):
        pass


@pytest.mark.parametrize("name", ["none", "green_context", "cpu_pacing"])
def test_ranks_need_nothing_in_their_environment_but_for_mps(fake_mps, tmp_path, name):
    with host_throttle(name, [100, 50, 25], tmp_path) as envs:
        assert envs == [{}, {}, {}]
    assert fake_mps.record() == []


def test_pacing_is_reported_as_emulated():
    with rank_throttle("cpu_pacing", 50, "cpu") as applied:
        assert (applied.name, applied.percentage, applied.emulated) == ("cpu_pacing", 50, True)
        assert (applied.sm_count, applied.sm_total, applied.achieved) == (None, None, None)


def test_pacing_makes_the_pacer_wait(monkeypatch):
    slept = []
    with rank_throttle("cpu_pacing", 50, torch.device("cpu")) as applied:
        monkeypatch.setattr(applied.pacer, "_sleep", slept.append)
        applied.pacer.settle(0.002)
    assert slept[0] == pytest.approx(0.0017)


def test_no_throttle_has_a_pacer_that_does_nothing(monkeypatch):
    with rank_throttle("none", 50, "cpu") as applied:
        monkeypatch.setattr(applied.pacer, "_sleep", lambda seconds: pytest.fail("it waited"))
        applied.pacer.settle(1.0)
        assert not applied.emulated


def test_no_throttle_on_cuda_has_the_whole_device(sees_sms):
    sees_sms(132)
    with rank_throttle("none", 50, "cuda:0") as applied:
        assert (applied.sm_count, applied.sm_total, applied.achieved) == (132, 132, 1.0)


@pytest.mark.parametrize(("percentage", "granted"), [(100, 132), (90, 118), (50, 66), (25, 32), (10, 12)])
def test_mps_reports_the_sms_it_was_granted(sees_sms, percentage, granted):
    sees_sms(granted)
    with rank_throttle("mps", percentage, "cuda:0") as applied:
        assert (applied.sm_count, applied.sm_total) == (granted, 132)
        assert applied.achieved == pytest.approx(granted / 132)
        assert not applied.emulated


@pytest.mark.parametrize(("percentage", "granted"), [(50, 132), (100, 66)])
def test_mps_without_effect_raises(sees_sms, percentage, granted):
    sees_sms(granted)
    with pytest.raises(RuntimeError, match=rf"mps did not take effect: asked for {percentage} % of 132 SMs"):
        with rank_throttle("mps", percentage, "cuda:0"):
            pass


def test_mps_on_a_device_nobody_knows_the_size_of_is_not_checked(sees_sms, monkeypatch):
    sees_sms(66)
    monkeypatch.delenv(SM_TOTAL_ENV)
    monkeypatch.setattr("ringexp.hetero.sm_count.probe_sm_totals", list)
    with rank_throttle("mps", 10, "cuda:0") as applied:
        assert (applied.sm_count, applied.sm_total, applied.achieved) == (66, None, None)


def test_a_rank_asks_for_the_size_of_its_own_device_if_the_host_did_not_say(sees_sms, monkeypatch):
    sees_sms(66)
    monkeypatch.delenv(SM_TOTAL_ENV)
    monkeypatch.setattr("ringexp.hetero.sm_count.probe_sm_totals", lambda: [80, 132])
    with rank_throttle("mps", 50, "cuda:1") as applied:
        assert applied.sm_total == 132


def test_a_paced_rank_changes_its_pace(monkeypatch):
    with rank_throttle("cpu_pacing", 100, "cpu") as applied:
        slower = applied.changed(50)
        assert (slower.percentage, slower.pacer) == (50, applied.pacer)
        began = time.perf_counter()
        slower.pacer.settle(0.02)
        assert time.perf_counter() - began >= 0.02
        faster = slower.changed(100)
        monkeypatch.setattr(faster.pacer, "_sleep", lambda seconds: pytest.fail("it waited"))
        faster.pacer.settle(0.5)


def test_a_quota_is_written_anew(tmp_path, monkeypatch):
    (tmp_path / "cgroup.procs").write_text("")
    monkeypatch.setenv("RINGEXP_CGROUP", str(tmp_path))
    monkeypatch.setattr("ringexp.hetero.cpu_quota.busy_share", lambda threads: 0.5)
    monkeypatch.setattr("ringexp.hetero.cgroup.own_group", lambda: OwnGroup(2, tmp_path, tmp_path))
    with rank_throttle("cpu_quota", 50, "cpu") as applied:
        assert applied.changed(25).percentage == 25
        share = 0.25 * torch.get_num_threads()
        assert (tmp_path / "cpu.max").read_text() == f"{round(share * 20_000)} 20000"


@pytest.mark.parametrize("spec", THROTTLES, ids=THROTTLES.names)
def test_every_throttle_has_code_and_says_if_fixed(spec):
    assert isinstance(load_throttle(spec.name), Throttle)
    assert bool(spec.why_fixed) != spec.changes_in_mid_run


@pytest.mark.parametrize(
    ("name", "device_type", "start"),
    [
        ("none", "cpu", "cpu_pacing"),
        ("cpu_pacing", "cpu", "cpu_pacing"),
        ("cpu_quota", "cpu", "cpu_quota"),
        ("none", "cuda", "none"),
        ("mps", "cuda", "mps"),
    ],
)
def test_ranks_of_any_profile_start_with_pacing(name, device_type, start):
    assert starting_throttle(name, device_type) == start
    assert takes_any_profile(name, device_type) == (start == "cpu_pacing")
