"""The arguments of the Hopper kernel, by the names of its parameters; no GPU needed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from ringexp.kernels import (
    Accumulator,
    ArrivalFlags,
    Destination,
    KeySpan,
    Remote,
    Sending,
    hopper_block,
    hopper_launch,
)
from ringexp.kernels.hopper_groups import Arguments
from ringexp.kernels.hopper_tiles import BLOCK_N, MOST_COURIERS, ROWS, RUN, num_couriers
from ringexp.planning import BlockShape

hopper_kernel = pytest.importorskip("ringexp.kernels.hopper_kernel", reason="needs triton >= 3.6")

BF16 = torch.bfloat16
HEADS_PER_PIECE = 1


@pytest.fixture
def launched(monkeypatch):
    """Return a list that gets the arguments of each launch, by name."""
    launches = []

    class Launcher:
        def __getitem__(self, grid):
            return self

        def __call__(self, *arguments, num_warps, launch_pdl, **constants):
            names = hopper_kernel.attention_block.arg_names
            assert (num_warps, launch_pdl) == (4, True)
            assert [*names[len(arguments) :]] == [*constants]
            launches.append(dict(zip(names, arguments, strict=False)) | constants)

    monkeypatch.setattr(hopper_launch, "_kernel", lambda: SimpleNamespace(attention_block=Launcher()))
    counter = SimpleNamespace(next=lambda: torch.zeros(4, dtype=torch.int32))
    monkeypatch.setattr(hopper_launch, "counters_of", lambda device: counter)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    return launches


def test_the_groups_have_the_parameters_of_the_kernel_in_its_order():
    from typing import get_type_hints

    names = [name for group in get_type_hints(Arguments).values() for name in group._fields]
    kernel = hopper_kernel.attention_block
    assert names == [param.name for param in kernel.params if not param.is_constexpr]


def tiles_of(length, rows):
    return (length + rows - 1) // rows


def tokens(length, heads, dim=128):
    """[B, H, L, D] as queries, keys and values come."""
    return torch.empty(1, length, heads, dim, dtype=BF16).transpose(1, 2)


def launch(spans, q_len=1024, heads=8):
    q = tokens(q_len, heads)
    out, lse = torch.empty(1, q_len, heads, 128, dtype=BF16), torch.empty(1, heads, q_len)
    accumulator = Accumulator(out, lse, True, out, (0, q_len))
    hopper_block.block_into(q, spans, BlockShape.CAUSAL, 0.1, accumulator)
    return q, out


def test_a_single_block_is_passed_on_as_it_lies_in_memory(launched):
    k, v = tokens(1024, 2), tokens(1024, 2)
    q, out = launch([KeySpan(k, v)])
    (found,) = launched
    for name, x in {"q_desc": q, "k_desc": k, "v_desc": v, "out_desc": out.transpose(1, 2)}.items():
        assert (found[name].base.data_ptr(), tuple(found[name].shape)) == (x.data_ptr(), tuple(x.shape))
    rows = {name: found[name].block_shape[2] for name in ("q_desc", "k_desc", "v_desc", "out_desc")}
    assert rows == {"q_desc": ROWS, "k_desc": BLOCK_N, "v_desc": BLOCK_N, "out_desc": ROWS}
    assert all(found[f"{x}{span}_desc"] is None for span in (1, 2, 3) for x in ("k", "v", "kto", "vto"))
    assert (found["SPANS"], found["AWAIT"], found["SENDS"]) == (1, False, 0)
    assert (found["q_len"], found["kv_len"], found["group"], found["num_heads"]) == (1024, 1024, 4, 8)
    assert found["num_tiles"] == tiles_of(1024, found["CONSUMERS"] * ROWS)
    assert found["total"] == 8 * found["num_tiles"]


def remote(address, length, heads=2):
    return Remote(address, (1, heads, length, 128), (length * heads * 128, 128, heads * 128, 1), BF16)


@pytest.fixture
def exchange(launched):
    """Return a launch that waits for one of two further spans and sends to two ranks, and its inputs."""
    given = SimpleNamespace(k=tokens(1024, 2), v=tokens(1024, 2), lengths=(1000, 300))
    given.words, given.waited, given.counts, given.took = (
        torch.zeros(n, dtype=torch.int32) for n in (8, 1, 4, 1)
    )
    given.arriving = ArrivalFlags(given.words.view(2, 4)[:, 0], given.waited, 1 << 40)
    given.to = [
        Destination(remote(n << 32, length), remote(n << 33, length), n << 34, n << 35)
        for n, length in enumerate(given.lengths, start=1)
    ]
    spans = [
        KeySpan(given.k, given.v, sending=Sending(given.k, given.v, given.to, 2, given.counts, given.took)),
        KeySpan(tokens(256, 2), tokens(256, 2)),
        KeySpan(tokens(512, 2), tokens(512, 2), 128, given.arriving),
    ]
    launch(spans)
    (arguments,) = launched
    return arguments, given


def test_only_what_has_not_arrived_is_awaited(exchange):
    found, given = exchange
    assert (found["SPANS"], found["AWAIT"], found["CONSUMERS"]) == (3, True, 2)
    spans = {n: [found[f"{name}{n}"] for name in ("from", "tiles", "taken")] for n in (1, 2, 3)}
    assert spans == {
        1: [0, 256 // BLOCK_N, 0],
        2: [128, 512 // BLOCK_N, given.arriving.read_flag],
        3: [0, 0, 0],
    }
    assert found["words1_ptr"].tolist() == [1, 1]  # there already
    assert found["words2_ptr"].data_ptr() == given.words.data_ptr()
    assert found["words3_ptr"] is None
    assert found["waited_ptr"] is given.waited
    assert (found["heads_per_piece"], found["pieces"]) == (HEADS_PER_PIECE, 2)


def test_what_is_sent_goes_to_each_destination(exchange):
    found, given = exchange
    assert found["SENDS"] == 2
    assert (found["counts_ptr"], found["took_ptr"]) == (given.counts, given.took)
    for name, x in {"ks_desc": given.k, "vs_desc": given.v}.items():
        assert found[name].base.data_ptr() == x.data_ptr()
        assert found[name].block_shape[2] == ROWS
    for n, each in enumerate(given.to, start=1):
        assert [found[f"{x}to{n}_desc"].base.data_ptr() for x in "kv"] == [each.k.address, each.v.address]
        assert tuple(found[f"kto{n}_desc"].shape) == each.k.shape
        assert (found[f"free{n}"], found[f"ready{n}"]) == (each.free, each.ready)
        assert found[f"sent{n}"] == tiles_of(each.k.shape[2], ROWS)
    assert (found["kto3_desc"], found["free3"], found["sent3"]) == (None, 0, 0)


def test_runs_of_tiles_cover_all_that_is_sent(exchange):
    found, given = exchange
    assert found["sent_tiles"] == tiles_of(max(given.lengths), ROWS)
    assert (found["runs_per_head"] - 1) * RUN < found["sent_tiles"] <= found["runs_per_head"] * RUN
    assert found["runs_per_piece"] == 2 * HEADS_PER_PIECE * found["runs_per_head"]  # of keys and of values
    assert found["runs"] == found["pieces"] * found["runs_per_piece"]
    assert 0 < found["couriers"] <= MOST_COURIERS


@pytest.mark.parametrize("sent_mib", [1, 8, 32, 128, 4096])
@pytest.mark.parametrize("computing_ms", [0.05, 0.5, 5, 50])
def test_as_few_programs_send_as_are_done_before_the_computing(sent_mib, computing_ms):
    """A program stores at least 8 GB/s over NVLink. A few always send, but not so many that loads suffer."""
    sent_bytes = sent_mib << 20
    couriers = num_couriers(sent_bytes, computing_ms)
    fewest, most = num_couriers(0, computing_ms), MOST_COURIERS
    assert 0 < fewest <= couriers <= most < 132
    assert couriers == most or couriers * 8e6 * computing_ms >= sent_bytes
    assert couriers == fewest or (couriers - 1) * 8e6 * computing_ms < 2 * sent_bytes
    assert couriers <= num_couriers(2 * sent_bytes, computing_ms)
    assert couriers >= num_couriers(sent_bytes, 2 * computing_ms)


@pytest.mark.parametrize(("length", "kv_heads"), [(2048, 32), (2048, 8), (8192, 32), (8192, 8)])
def test_longer_computing_and_fewer_heads_need_fewer_couriers(launched, length, kv_heads):
    def couriers(length, heads):
        k, v = tokens(length, heads), tokens(length, heads)
        counts, took = (torch.zeros(n, dtype=torch.int32) for n in (2 + heads, 1))
        to = Destination(remote(1 << 32, length, heads), remote(1 << 33, length, heads), 1 << 34, 1 << 35)
        first = KeySpan(k, v, sending=Sending(k, v, [to], heads, counts, took))
        launch([first, KeySpan(tokens(length, heads), tokens(length, heads), length // 2)], length, 32)
        return launched[-1]["couriers"]

    assert couriers(length, kv_heads) >= couriers(2 * length, kv_heads)
    assert couriers(length, kv_heads) >= couriers(length, kv_heads // 2)
    assert couriers(2048, 32) > couriers(8192, 8)
