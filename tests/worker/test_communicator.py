"""Values that ranks exchange are of the types that they agreed on."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import get_args, get_type_hints

from ringexp.tracking.references import ReferenceStore
from ringexp.worker.communicator import EXCHANGED


def test_what_references_are_read_as_can_be_sent():
    methods = [value for name, value in vars(ReferenceStore).items() if callable(value) and name[0] != "_"]
    hints = [get_type_hints(method).get("return") for method in methods]
    kinds = {kind for hint in hints for kind in (hint, *get_args(hint)) if is_dataclass(kind)}
    assert kinds
    assert kinds <= set(EXCHANGED)
