"""matplotlib, imported without regard to MPLBACKEND: a notebook names one that only the notebook has.

`report.figures` imports this module before anything of matplotlib's.
"""

from __future__ import annotations

import os
from types import ModuleType


def _imported() -> ModuleType:
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    return matplotlib


MATPLOTLIB = _imported()
