"""Work of a test pool's ranks; importable, so that it travels to the processes by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from ringexp.calibration.link import measure_link
from ringexp.kernels import Kernel, get_kernel
from ringexp.planning import Link, Mask, Plan, make_plan
from ringexp.ring.attention import ring_attention
from ringexp.ring.clock import CpuClock, CudaClock, NoClock
from ringexp.ring.context import RingContext
from ringexp.ring.gloo import GlooTransport
from support import stand_ins
from support.joining import carried, joining_kernel

_transports: list[GlooTransport] = []


class NoPacer:
    def settle(self, elapsed_s: float) -> None: ...


@dataclass(frozen=True)
class Case:
    """One ring run: token counts a rank and the attention shape."""

    tokens: tuple[int, ...]
    layout: str = "zigzag"
    shard: str = "tokens"
    causal: bool = True
    batch: int = 1
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    dtype: str = "float32"
    kernel: str = "sdpa"
    prefetch_hops: int | None = None

    def plan(self) -> Plan:
        return make_plan(
            sum(self.tokens), self.tokens, self.layout, split=self.shard, mask=Mask.of(self.causal)
        )

    def qkv(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The whole prompt's [B, S, heads, D], the same in every process."""
        generator = torch.Generator().manual_seed(7)
        seq_len, dtype = sum(self.tokens), getattr(torch, self.dtype)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        q, k, v = (
            torch.randn(self.batch, seq_len, n, self.head_dim, generator=generator).to(dtype) for n in heads
        )
        return q, k, v

    def attention_kernel(self, rank: int) -> Kernel:
        if self.kernel == "joining" or (self.kernel == "joining on rank 0" and not rank):
            return joining_kernel()
        name = "sdpa" if self.kernel == "joining on rank 0" else self.kernel
        return get_kernel(name, "cpu", getattr(torch, self.dtype), self.head_dim)

    def nothing(self) -> torch.Tensor:
        """The output of a rank that is not in the ring."""
        return torch.empty(self.batch, 0, self.num_heads, self.head_dim)


def transport() -> GlooTransport:
    if not _transports:
        _transports.append(GlooTransport())
    return _transports[0]


@torch.inference_mode()
def attend(rank: int, case: Case) -> tuple[torch.Tensor, int, int]:
    """This rank's attention output [B, L, H, D], how many hops arrived, and how many transfers were timed."""
    plan = case.plan()
    if not plan.tokens[rank]:
        dist.barrier()
        return case.nothing(), 0, 0
    clock = CpuClock(NoPacer())
    kernel = case.attention_kernel(rank)
    ring = RingContext(plan, rank, transport(), kernel, clock, case.prefetch_hops)
    mine = torch.tensor(plan.q_shards[rank].positions())
    q, k, v = (x[:, mine] for x in case.qkv())
    clock.start()
    out = ring_attention(q, k, v, ring)
    clock.stop()
    dist.barrier()
    transfers = [transfer(clock.origin) for transfer in transport().transfers.take()]
    assert all(start >= 0 and duration >= 0 for start, duration in transfers)
    return out, len(clock.read().hops), len(transfers)


@torch.inference_mode()
def attend_with_transport_of(rank: int, code: str, case: Case) -> torch.Tensor:
    """This rank's attention output, over the transport class that Python code defines."""
    from ringexp.ring.transport import Connection, Transport

    defined: dict[str, object] = {}
    exec(code, defined)
    (kind,) = (
        x for x in defined.values() if isinstance(x, type) and issubclass(x, Transport) and x is not Transport
    )
    transport = kind.connect(Connection(torch.device("cpu")))
    plan = case.plan()
    ring = RingContext(plan, rank, transport, case.attention_kernel(rank), NoClock())
    mine = torch.tensor(plan.q_shards[rank].positions())
    out = ring_attention(*(x[:, mine] for x in case.qkv()), ring)
    transport.barrier()
    transport.close()
    return out


@torch.inference_mode()
def fail_at_the_first_block(rank: int, case: Case) -> str:
    """Return the error of a kernel in mid-ring. Raises if the thread that forwards shards is not free."""

    def block(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        raise ValueError("no such block")

    plan, carrier = case.plan(), GlooTransport()
    ring = RingContext(plan, rank, carrier, Kernel("broken", block), NoClock(), case.prefetch_hops)
    mine = torch.tensor(plan.q_shards[rank].positions())
    try:
        ring_attention(*(x[:, mine] for x in case.qkv()), ring)
    except ValueError as error:
        carrier._forwarder.submit(int).result(timeout=30)
        return str(error)
    return "nothing"


@torch.inference_mode()
def attend_in_chunks_over_stand_ins(rank: int, case: Case, chunks: int) -> torch.Tensor:
    """This rank's output of all chunks of the prompt, a ring each, over IPC with stand-ins for CUDA."""
    from ringexp.ring.ipc import IpcTransport

    whole = make_plan(sum(case.tokens), case.tokens, case.layout, tile=4, chunks=chunks)
    with stand_ins.cuda():
        transport, outputs = IpcTransport(torch.device("cpu")), []
        for plan in whole.chunks:
            ring = RingContext(plan, rank, transport, case.attention_kernel(rank), CpuClock(NoPacer()))
            ring.clock.start()
            queries, keys = (
                torch.tensor(shards[rank].positions()) for shards in (plan.q_shards, plan.kv_shards)
            )
            q, k, v = case.qkv()
            outputs.append(ring_attention(q[:, queries], k[:, keys], v[:, keys], ring))
            transport.barrier()
        transport.close()
    dist.barrier()
    return torch.cat(outputs, dim=1)


@torch.inference_mode()
def attend_over_stand_ins(
    rank: int, name: str, cases: list[Case], devices: int = 1 << 30, kinds: int = 1, nvlink: bool = True
) -> tuple[torch.Tensor, int]:
    """Do as `attend` for the last of the cases, over a CUDA transport with stand-ins for CUDA."""
    from ringexp.ring.transport import make_transport

    with stand_ins.cuda(devices, kinds, nvlink):
        transport = make_transport(name, torch.device("cpu"))
        for case in cases:
            plan = case.plan()
            transport.memory.reserve(
                2 * case.batch * max(case.tokens) * case.num_kv_heads * case.head_dim * 4
            )
            if not plan.tokens[rank]:
                out, transfers = case.nothing(), 0
                transport.barrier()
                continue
            kernel = case.attention_kernel(rank)
            ring = RingContext(plan, rank, transport, kernel, CpuClock(NoPacer()), case.prefetch_hops)
            ring.clock.start()
            mine = torch.tensor(plan.q_shards[rank].positions())
            q, k, v = (x[:, mine] for x in case.qkv())
            out = ring_attention(q, k, v, ring)
            kept = transport.transfers.take()
            assert not stand_ins.dropped_events()
            transfers = len(kept)
            transport.barrier()
            stand_ins.forget_events()
        transport.close()
    dist.barrier()
    return out, transfers


def sent_over_stand_ins(rank: int, case: Case, nvlink: bool = True) -> tuple[int, int]:
    """Count the bytes that this rank copies to others and that its kernel sends them, over IPC.

    Stand-ins take the place of CUDA, and each rank has a GPU.
    """
    stand_ins.copied.clear()
    carried.clear()
    attend_over_stand_ins(rank, "ipc", [case], nvlink=nvlink)
    return sum(stand_ins.copied), sum(carried)


@torch.inference_mode()
def link_over_stand_ins(rank: int, name: str) -> tuple[Link, Link]:
    """Measure the cost of hops twice over a CUDA transport with stand-ins for CUDA."""
    from ringexp.ring.transport import make_transport

    def slowest(value: float) -> float:
        values: list[float] = [0.0] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return max(values)

    with stand_ins.cuda():
        device = torch.device("cpu")
        transport = make_transport(name, device)
        clock = CudaClock() if name != "gloo" else CpuClock(NoPacer())
        plan = make_plan(dist.get_world_size(), [1] * dist.get_world_size())
        kernel = get_kernel("sdpa", device, torch.float32, 16)
        measure = partial(measure_link, RingContext(plan, rank, transport, kernel, clock), device, slowest)
        links = measure(), measure()
        transport.close()
    dist.barrier()
    return links


@torch.inference_mode()
def gather_over_stand_ins(rank: int, name: str, held: list[int], dtype: str) -> list[torch.Tensor]:
    """Return two gathers of odd size over a transport, CUDA's with stand-ins; [] if no rank holds any."""
    from ringexp.ring.decode import gather
    from ringexp.ring.transport import make_transport

    def mine(turn: int) -> torch.Tensor:
        return torch.arange(15).view(3, 5).to(getattr(torch, dtype)) + 100 * rank + 1000 * turn

    gathered = []
    with stand_ins.cuda():
        transport = make_transport(name, torch.device("cpu"))
        transport.memory.reserve(1024)
        if held[rank]:
            clock = CpuClock(NoPacer())
            clock.start()
            gathered = [gather(mine(turn), held, transport, clock) for turn in (0, 1)]
        transport.barrier()
        transport.close()
    dist.barrier()
    return gathered


def slots_over_stand_ins(rank: int, devices: int) -> int:
    """The number of slots that IPC has per shard, on so many devices; with stand-ins for CUDA."""
    from ringexp.ring.ipc import IpcTransport

    with stand_ins.cuda(devices):
        transport = IpcTransport(torch.device("cpu"))
        transport.barrier()
        transport.close()
    dist.barrier()
    return transport.memory.slots_per_shard


def epochs_over_stand_ins(rank: int) -> list[int]:
    """The epoch of IPC after reserving this, that and again more; with stand-ins for CUDA."""
    from ringexp.ring.ipc import IpcTransport

    with stand_ins.cuda():
        transport = IpcTransport(torch.device("cpu"))
        epochs = []
        for num_bytes in (1000, 500, 1000, 5000):
            transport.memory.reserve(num_bytes)
            epochs.append(transport.memory.epoch)
        transport.close()
    dist.barrier()
    return epochs


@torch.inference_mode()
def decode_one(rank: int, held: list[int], firsts: list[list[int]], kv_heads: int) -> torch.Tensor:
    """Attention [3, 1, 4, 16] of one token over caches that begin with firsts[rank][sequence] of padding."""
    from ringexp.kernels import Slots, get_decode_kernel
    from ringexp.ring.decode import DecodeContext, decode_attention

    q, k, v = decode_inputs(sum(held), kv_heads)
    before = sum(held[:rank])
    mine = slice(before, before + held[rank])
    clock = CpuClock(NoPacer())
    clock.start()
    kernel = get_decode_kernel("cpu", torch.float32, 16)
    slots = Slots(firsts[rank], held[rank], torch.device("cpu"))
    context = DecodeContext(held, transport(), kernel, clock, slots)
    out = decode_attention(q, k[:, mine], v[:, mine], context)
    transport().transfers.take()  # other tests look at theirs
    return out


def decode_inputs(slots: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = (3, 1, 4, 16), (3, slots, kv_heads, 16), (3, slots, kv_heads, 16)
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v
