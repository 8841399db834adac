"""Calls of the CUDA driver, into a stand-in of cuda.bindings.driver that records them."""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from ringexp.errors import UserError
from ringexp.ring import cuda_driver

WAIT, WRITE, EQUAL = "wait", "write", 1
STREAM = SimpleNamespace(cuda_stream=7)


class _Operation:
    def __init__(self):
        self.waitValue = self.writeValue = SimpleNamespace()

    def __repr__(self):
        return f"{self.operation} {self.waitValue.address} {self.waitValue.value} {self.waitValue.flags}"


@pytest.fixture
def driver(monkeypatch):
    module = MagicMock(CUstreamBatchMemOpParams=MagicMock(side_effect=_Operation))
    module.CUstreamBatchMemOpType = SimpleNamespace(
        CU_STREAM_MEM_OP_WAIT_VALUE_32=WAIT, CU_STREAM_MEM_OP_WRITE_VALUE_32=WRITE
    )
    module.CUstreamWaitValue_flags = SimpleNamespace(CU_STREAM_WAIT_VALUE_EQ=EQUAL)
    module.CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_UNIFIED=4)
    module.CUDA_MEMCPY2D = SimpleNamespace
    module.cuStreamBatchMemOp = MagicMock(return_value=(0,))
    module.cuMemcpy2DAsync = MagicMock(return_value=(0,))
    module.cuMemcpyDtoDAsync = MagicMock(return_value=(0,))
    module.cuGetErrorString = lambda status: (0, b"invalid argument")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", module)
    _forget()
    yield module
    _forget()


def _forget():
    for function in (cuda_driver._driver, cuda_driver._flag_batches, cuda_driver._rows):
        function.cache_clear()


def _batches(driver):
    return [
        [str(operation) for operation in call.args[2]] for call in driver.cuStreamBatchMemOp.call_args_list
    ]


def test_stream_waits_and_clears_before_it_raises(driver):
    cuda_driver.flags(STREAM, awaited=[16, 32], raised=[48])
    assert _batches(driver) == [
        ["wait 16 1 1", "write 16 0 0", "wait 32 1 1", "write 32 0 0", "write 48 1 0"]
    ]
    assert driver.cuStreamBatchMemOp.call_args.args[:2] == (7, 5)


def test_equal_flags_reuse_their_parameters(driver):
    for addresses in ([16], (16,), [32], [16]):
        cuda_driver.flags(STREAM, raised=addresses)
    assert _batches(driver) == [["write 16 1 0"], ["write 16 1 0"], ["write 32 1 0"], ["write 16 1 0"]]
    assert driver.CUstreamBatchMemOpParams.call_count == 2


def test_many_flags_come_in_batches_cuda_takes(driver):
    cuda_driver.flags(STREAM, awaited=range(16, 16 * 201, 16))
    batches = _batches(driver)
    assert max(map(len, batches)) <= 256
    assert [operation for batch in batches for operation in batch] == [
        f"{kind} {address} {value_and_flags}"
        for address in range(16, 16 * 201, 16)
        for kind, value_and_flags in ((WAIT, "1 1"), (WRITE, "0 0"))
    ]


def test_no_flags_need_no_call(driver):
    cuda_driver.flags(STREAM)
    assert not driver.cuStreamBatchMemOp.called


def test_rows_with_gaps_are_copied_per_sequence(driver):
    rows = torch.zeros(2, 5, 4, 8)[:, :, 1:3]
    cuda_driver.copy_rows(STREAM, 4096, 256, rows)
    copies = [call.args[0] for call in driver.cuMemcpy2DAsync.call_args_list]
    assert [(copy.srcDevice, copy.dstDevice) for copy in copies] == [
        (rows[0].data_ptr(), 4096),
        (rows[1].data_ptr(), 4096 + 5 * 256),
    ]
    assert {(c.srcPitch, c.dstPitch, c.WidthInBytes, c.Height) for c in copies} == {(128, 256, 64, 5)}


def test_failed_call_is_named_with_cudas_text(driver):
    driver.cuMemcpyDtoDAsync.return_value = (1,)
    with pytest.raises(RuntimeError, match=r"^cuMemcpyDtoDAsync: invalid argument$"):
        cuda_driver.copy(STREAM, 16, 32, 8)


def test_missing_package_is_named_in_one_line(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(UserError, match=r"^CUDA IPC needs the package cuda-bindings: pip install .*$"):
        cuda_driver.export(torch.zeros(1))
