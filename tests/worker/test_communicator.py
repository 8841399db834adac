"""Values that ranks exchange are of the types that they agreed on."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import get_args, get_type_hints

from ringexp.tracking.references import ReferenceStore
from ringexp.worker.communicator import EXCHANGED


def test_what_rank_zero_reads_of_references_can_be_sent():
    methods = (ReferenceStore.get_kernel, ReferenceStore.collect)
    hints = [get_type_hints(method)["return"] for method in methods]
    kinds = {kind for hint in hints for kind in (hint, *get_args(hint)) if is_dataclass(kind)}
    assert len(kinds) == len(methods)
    assert kinds <= set(EXCHANGED)
