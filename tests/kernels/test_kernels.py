"""Every block kernel that can run here against the float64 oracle, and the merge of partial results.

The Triton kernel runs in Triton's interpreter, which has to be chosen before triton is first imported, so its
cases run in one child process and are compared here.
"""

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.errors import UserError
from ringexp.kernels import OnlineSoftmax, get_kernel
from ringexp.kernels.oracle import block_fp64

EPS = {"float32": 2**-23, "bfloat16": 2**-8, "float16": 2**-11}


@dataclass(frozen=True)
class Case:
    q_len: int
    kv_len: int
    causal: bool
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    batch: int = 1
    dtype: str = "float32"
    scale: float | None = None  # softmax scale; None: 1/sqrt(head_dim)

    def __str__(self) -> str:
        kind = "causal" if self.causal else "full"
        h, kv = self.heads
        return f"{self.q_len}x{self.kv_len}-{kind}-h{h}kv{kv}-d{self.head_dim}-b{self.batch}-{self.dtype}"

    @property
    def softmax_scale(self) -> float:
        return self.scale or self.head_dim**-0.5

    def qkv(self, device: str = "cpu") -> list[torch.Tensor]:
        """[B, H, L, D] views of [B, L, H, D] tensors, as the ring has them."""
        generator = torch.Generator().manual_seed(self.q_len * 7919 + self.kv_len * 31 + self.head_dim)
        shapes = [(self.q_len, self.heads[0]), (self.kv_len, self.heads[1]), (self.kv_len, self.heads[1])]
        return [
            torch.randn(self.batch, length, heads, self.head_dim, generator=generator)
            .to(device, getattr(torch, self.dtype))
            .transpose(1, 2)
            for length, heads in shapes
        ]


LENGTHS = [1, 3, 17, 64, 127, 130]
CASES = [
    *[Case(n, n, True) for n in LENGTHS],
    *[Case(n, m, False) for n, m in zip(LENGTHS, reversed(LENGTHS), strict=True)],
    Case(70, 70, True, heads=(4, 1), head_dim=48),
    Case(70, 33, False, heads=(8, 8), head_dim=128, batch=2),
    Case(45, 45, True, heads=(6, 2), head_dim=80, batch=2),
    Case(40, 40, True, head_dim=32, scale=3.0),
    *[Case(65, 65, True, dtype=dtype) for dtype in ("bfloat16", "float16")],
    *[Case(33, 90, False, dtype=dtype) for dtype in ("bfloat16", "float16")],
]


def check(case: Case, out: torch.Tensor, lse: torch.Tensor) -> None:
    exact_out, exact_lse = block_fp64(*(x.cpu() for x in case.qkv()), case.causal, case.softmax_scale)
    assert out.shape == exact_out.shape
    assert out.dtype == getattr(torch, case.dtype)
    assert lse.shape == exact_lse.shape
    assert lse.dtype == torch.float32
    out, lse = out.cpu(), lse.cpu()
    spread = exact_out.abs().max().item()
    assert (out.double() - exact_out).abs().max().item() <= 6 * EPS[case.dtype] * spread
    assert (lse.double() - exact_lse).abs().max().item() <= 2e-5


def run_interpreted() -> None:
    """In the child: run all cases with the Triton kernel and hand the results to standard output."""
    kernel = get_kernel("triton", "cpu", torch.float32, 64)
    results = [kernel.block(*case.qkv(), case.causal, case.softmax_scale) for case in CASES]
    sys.stdout.buffer.write(pickle.dumps([(out.float(), lse) for out, lse in results]))


@pytest.fixture(scope="module")
def interpreted():
    code = "from kernels.test_kernels import run_interpreted; run_interpreted()"
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=tests,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": tests},
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(zip(CASES, pickle.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_in_the_interpreter_equals_the_oracle(interpreted, case):
    out, lse = interpreted[case]
    check(case, out.to(getattr(torch, case.dtype)), lse)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["reference", "sdpa"])
def test_cpu_kernels_equal_the_oracle(name, case):
    kernel = get_kernel(name, "cpu", getattr(torch, case.dtype), case.head_dim)
    check(case, *kernel.block(*case.qkv(), case.causal, case.softmax_scale))


GPU_CASES = [
    Case(n, n, causal, heads=heads, head_dim=dim, dtype=dtype)
    for n in (1000, 4113)
    for causal in (True, False)
    for heads in ((4, 4), (8, 2))
    for dim in (64, 128)
    for dtype in ("float16", "bfloat16")
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
@pytest.mark.parametrize("name", ["reference", "sdpa", "cudnn", "triton"])
def test_cuda_kernels_equal_the_oracle(name, case):
    kernel = get_kernel(name, "cuda", getattr(torch, case.dtype), case.head_dim)
    check(case, *kernel.block(*case.qkv("cuda"), case.causal, case.softmax_scale))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sdpa", "triton"])
def test_cuda_kernels_take_float32(name):
    case = Case(517, 517, True)
    check(case, *get_kernel(name, "cuda", torch.float32, 64).block(*case.qkv("cuda"), True, 0.125))


def test_the_oracle_is_softmax_attention():
    q, k, v = Case(9, 9, True).qkv()
    out, lse = block_fp64(q, k, v, True, 0.125)
    k, v = (x.double().repeat_interleave(2, 1) for x in (k, v))
    scores = (q.double() @ k.transpose(2, 3) * 0.125).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(out, scores.softmax(-1) @ v)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12).flatmap(st.permutations), st.floats(0.1, 20))
def test_merging_any_parts_in_any_order_gives_the_whole(parts, spread):
    case = Case(7, sum(parts), False, head_dim=16)
    q, k, v = case.qkv()
    k = k * spread
    state = OnlineSoftmax(1, 4, 7, 16, "cpu")
    start = 0
    for length in parts:
        keys = slice(start, start + length)
        out, lse = block_fp64(q, k[:, :, keys], v[:, :, keys], False, 0.25)
        state.merge(out.float(), lse.float())
        start += length
    exact, exact_lse = block_fp64(q, k, v, False, 0.25)
    merged = state.output(torch.float32).transpose(1, 2)
    assert (merged.double() - exact).abs().max() <= 2e-6 * v.abs().max()
    assert (state.lse.double() - exact_lse).abs().max() <= 1e-5 * max(1.0, exact_lse.abs().max().item())


def test_rows_may_be_merged_apart():
    case = Case(10, 20, False, head_dim=16)
    q, k, v = case.qkv()
    state = OnlineSoftmax(1, 4, 10, 16, "cpu")
    for rows in (slice(4, 10), slice(0, 4)):
        for keys in (slice(0, 5), slice(5, 20)):
            out, lse = block_fp64(q[:, :, rows], k[:, :, keys], v[:, :, keys], False, 0.25)
            state.merge(out.float(), lse.float(), rows)
    exact, _ = block_fp64(q, k, v, False, 0.25)
    torch.testing.assert_close(state.output(torch.float64).transpose(1, 2), exact, atol=2e-6, rtol=0)


def test_merging_never_writes_to_what_it_is_given():
    out, lse = torch.randn(1, 4, 7, 16), torch.randn(1, 4, 7)
    kept = out.clone(), lse.clone()
    state = OnlineSoftmax(1, 4, 7, 16, "cpu")
    state.merge(out, lse)
    state.merge(torch.randn(1, 4, 7, 16), torch.randn(1, 4, 7))
    assert torch.equal(out, kept[0])
    assert torch.equal(lse, kept[1])


def test_a_block_that_stays_alone_is_returned_unrounded():
    out = torch.randn(1, 4, 7, 16, dtype=torch.bfloat16)
    state = OnlineSoftmax(1, 4, 7, 16, "cpu")
    state.merge(out, torch.zeros(1, 4, 7))
    assert torch.equal(state.output(torch.bfloat16).transpose(1, 2), out)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cudnn", "kernel=cudnn needs CUDA, but device=cpu"),
        ("fast", "kernel=fast is unknown; choose one of auto, reference, sdpa, cudnn, triton"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        get_kernel(name, "cpu", torch.float32, 64)


def test_auto_picks_sdpa_on_the_cpu():
    assert get_kernel("auto", "cpu", torch.float32, 64).name == "sdpa"


def test_importing_the_kernels_does_not_import_triton():
    code = "import sys, ringexp.kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
