"""What the Hopper kernel is launched with, by name; no GPU needed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from ringexp.kernels import ArrivalFlags, Destination, KeySpan, Remote, Sending, hopper_block

hopper_kernel = pytest.importorskip("ringexp.kernels.hopper_kernel", reason="needs triton >= 3.6")

BF16 = torch.bfloat16


@pytest.fixture
def launched(monkeypatch):
    """The arguments of each launch, by name."""
    found = []

    class Launcher:
        def __getitem__(self, grid):
            return self

        def __call__(self, *arguments, **named):
            names = hopper_kernel.attention_block.arg_names
            options = {key: named.pop(key) for key in ("num_warps", "launch_pdl")}
            assert options["num_warps"] == 4
            assert [*names[len(arguments) :]] == [*named]
            found.append(dict(zip(names, arguments, strict=False)) | named)

    constants = {name: getattr(hopper_kernel, name) for name in ("ROWS", "BLOCK_N", "WORD")}
    monkeypatch.setattr(
        hopper_block, "_kernel", lambda: SimpleNamespace(attention_block=Launcher(), **constants)
    )
    counter = SimpleNamespace(next=lambda: torch.zeros(4, dtype=torch.int32))
    monkeypatch.setattr(hopper_block, "_counters", lambda device: counter)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    return found


def tokens(length, heads, dim=128):
    """[B, H, L, D] as queries, keys and values come."""
    return torch.empty(1, length, heads, dim, dtype=BF16).transpose(1, 2)


def launch(spans, q_len=1024, heads=8):
    q = tokens(q_len, heads)
    out, lse = torch.empty(1, q_len, heads, 128, dtype=BF16), torch.empty(1, heads, q_len)
    hopper_block.block_into(q, spans, True, 0.1, out, lse, True, out, (0, q_len))
    return q, out


def test_a_single_block(launched):
    k, v = tokens(1024, 2), tokens(1024, 2)
    q, out = launch([KeySpan(k, v)])
    (found,) = launched
    for name, x in {"q_desc": q, "k_desc": k, "v_desc": v, "out_desc": out.transpose(1, 2)}.items():
        assert (found[name].base.data_ptr(), tuple(found[name].shape)) == (x.data_ptr(), tuple(x.shape))
    assert [found[name].block_shape[2] for name in ("q_desc", "k_desc", "out_desc")] == [64, 128, 64]
    assert all(found[f"{x}{span}_desc"] is None for span in (1, 2, 3) for x in ("k", "v", "kto", "vto"))
    assert (found["SPANS"], found["AWAIT"], found["SENDS"]) == (1, False, 0)
    assert (found["q_len"], found["kv_len"], found["group"], found["num_heads"]) == (1024, 1024, 4, 8)
    assert (found["total"], found["num_tiles"]) == (64, 8)


def remote(address, length, heads=2):
    return Remote(address, (1, heads, length, 128), (length * heads * 128, 128, heads * 128, 1), BF16)


def test_what_is_awaited_and_what_is_sent(launched):
    k, v = tokens(1024, 2), tokens(1024, 2)
    words, waited, counts, took = (torch.zeros(n, dtype=torch.int32) for n in (8, 1, 4, 1))
    arriving = ArrivalFlags(words.view(2, 4)[:, 0], waited, 1 << 40)
    to = [
        Destination(remote(n << 32, length), remote(n << 33, length), n << 34, n << 35)
        for n, length in ((1, 1000), (2, 300))
    ]
    spans = [
        KeySpan(k, v, sending=Sending(k, v, to, 2, counts, took)),
        KeySpan(tokens(256, 2), tokens(256, 2)),
        KeySpan(tokens(512, 2), tokens(512, 2), 128, arriving),
    ]
    launch(spans)
    (found,) = launched
    assert (found["SPANS"], found["AWAIT"], found["SENDS"], found["CONSUMERS"]) == (3, True, 2, 2)
    assert [found[f"{name}{span}"] for span in (1, 2, 3) for name in ("from", "tiles", "taken")] == [
        *(0, 2, 0),
        *(128, 4, 1 << 40),
        *(0, 0, 0),
    ]
    assert found["words1_ptr"].tolist() == [1, 1]  # there already
    assert found["words2_ptr"].data_ptr() == words.data_ptr()
    assert found["words3_ptr"] is None
    for name, x in {"waited_ptr": waited, "counts_ptr": counts, "took_ptr": took}.items():
        assert found[name] is x
    assert (found["heads_a_piece"], found["pieces"]) == (1, 2)
    for name, x in {"ks_desc": k, "vs_desc": v}.items():
        assert found[name].base.data_ptr() == x.data_ptr()
        assert found[name].block_shape[2] == 64
    for n, each in enumerate(to, start=1):
        assert [found[f"{x}to{n}_desc"].base.data_ptr() for x in "kv"] == [n << 32, n << 33]
        assert tuple(found[f"kto{n}_desc"].shape) == each.k.shape
        assert (found[f"free{n}"], found[f"ready{n}"]) == (n << 34, n << 35)
    assert [found[f"sent{n}"] for n in (1, 2, 3)] == [16, 5, 0]  # tiles of 64
    assert found["kto3_desc"] is None
    assert (found["runs_a_head"], found["runs_a_piece"], found["runs"]) == (2, 4, 8)
    assert found["sent_tiles"] == 16


@pytest.mark.parametrize(
    ("length", "heads", "couriers"),
    [(2048, 32, 48), (2048, 8, 18), (8192, 32, 18), (8192, 8, 16)],
)
def test_as_few_programs_send_as_can_do_it_meanwhile(launched, length, heads, couriers):
    k, v = tokens(length, heads), tokens(length, heads)
    counts, took = (torch.zeros(n, dtype=torch.int32) for n in (2 + heads, 1))
    to = Destination(remote(1 << 32, length, heads), remote(1 << 33, length, heads), 1 << 34, 1 << 35)
    spans = [KeySpan(k, v, sending=Sending(k, v, [to], heads, counts, took))]
    launch([*spans, KeySpan(tokens(length, heads), tokens(length, heads), length // 2)], length, 32)
    (found,) = launched
    assert found["couriers"] == couriers
