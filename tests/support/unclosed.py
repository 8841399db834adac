"""Run by torchrun: a ring that goes well, then one in which rank 1 fails, and an end without `close`."""

import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.ring_group_ranks import FAILING, attend, heard

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    attend(rank)
    if "destroy" in sys.argv:
        dist.destroy_process_group()
    if "fail" in sys.argv:
        print(heard(lambda: attend(rank, extra=int(rank == FAILING))), flush=True)
