"""One run or several, from validated settings to results."""

from ringexp.app.execute import execute
from ringexp.app.rank_sets import rank_sets
from ringexp.app.single_run import run
from ringexp.app.site import ExecutionSite

__all__ = ["ExecutionSite", "execute", "rank_sets", "run"]
