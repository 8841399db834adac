"""The decode kernel against the float64 oracle: interpreted on the CPU, and compiled on a GPU."""

import pytest

from kernels.decode_cases import CASES, check_decode


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_token_over_a_cache(in_interpreter, case):
    in_interpreter(check_decode, case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_token_over_a_cache_compiled(case):
    check_decode(case, "cuda")
