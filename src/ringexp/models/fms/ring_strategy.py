"""The rule that splits the prompts of a ring model: by speeds for any length, or by fixed token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch.distributed as dist
from fms.distributed.strategy import DistributedStrategy
from torch import nn

from ringexp.errors import UserError, whole_number
from ringexp.planning import Plan, RankCost, make_plan
from ringexp.planning.inputs import entries
from ringexp.planning.planner import plan as plan_of
from ringexp.ring.ring_group import ring_group_of

KEPT_PLANS = 64


class RingAttentionStrategy(DistributedStrategy):
    """Sequence parallelism by `speeds`, or with fixed token counts. Modules stay whole on every rank.

    plan: that of `block_lens`; None where every prompt is planned by speeds.
    """

    def __init__(
        self,
        block_lens: Sequence[int] | None = None,
        group: dist.ProcessGroup | None = None,
        layout: str = "zigzag",
        from_meta: bool = False,
        speeds: Sequence[float] | Sequence[RankCost] | str | None = None,
    ) -> None:
        super().__init__(from_meta)
        world_size = ring_group_of(group).size
        if (block_lens is None) == (speeds is None):
            raise UserError(
                'distributed_strategy="ring" needs block_lens or speeds: speeds, one per rank or "measured", '
                "for prompts of any length; block_lens, the token count of every rank, for one length alone"
            )
        self.group, self.layout = group, layout
        self.plan: Plan | None = None
        self._speeds: list[float] | list[RankCost] = []
        self._plans: dict[tuple[int, tuple[int, ...]], Plan] = {}
        if block_lens is not None:
            lengths = entries("block_lens", block_lens)
            if len(lengths) != world_size:
                raise UserError(f"block_lens={lengths} needs one length for each of {world_size} ranks")
            lengths = [whole_number("block_lens", length, least=0) for length in lengths]
            self.plan = make_plan(sum(lengths), lengths, layout)
            return
        self._speeds = cast("list[float] | list[RankCost]", entries("speeds", speeds))
        if len(self._speeds) != world_size:
            raise UserError(f"speeds={self._speeds} needs one entry for each of {world_size} ranks")
        self.plan_for(world_size)  # refuses what cannot be planned

    def _distribute_module(self, module: nn.Module, final_layers: bool = False) -> nn.Module:
        return module

    def _distribute_layer(self, block: nn.Module, layer: int) -> nn.Module:
        return block

    def plan_for(self, seq_len: int, starts: tuple[int, ...] = ()) -> Plan:
        """Return the plan of a prompt.

        Args:
            seq_len: the prompt's tokens, padding included. With fewer tokens than ranks the slowest ranks get
                none.
            starts: of each sequence the first slot that is no padding; none: there is no padding.

        Raises:
            UserError: for a length other than that of `block_lens`.
        """
        if self.plan is not None and seq_len != self.plan.seq_len:
            raise UserError(
                f"the prompt has {seq_len} tokens, but block_lens={self.plan.tokens} are for "
                f"{self.plan.seq_len}; make the model with speeds= instead, for prompts of any length"
            )
        key = seq_len, starts
        if key not in self._plans:
            if len(self._plans) >= KEPT_PLANS:
                self._plans.clear()
            self._plans[key] = replace(self.plan or self._by_speed(seq_len), starts=starts)
        return self._plans[key]

    def _by_speed(self, seq_len: int) -> Plan:
        caps: list[int | None] = [None] * len(self._speeds)
        by_number = not any(isinstance(speed, RankCost) for speed in self._speeds)
        if seq_len < len(caps) and by_number:
            numbers = [float(speed) for speed in self._speeds if not isinstance(speed, RankCost)]
            fastest_first = sorted(range(len(caps)), key=lambda rank: (-numbers[rank], rank))
            for rank in fastest_first[seq_len:]:
                caps[rank] = 0
        return plan_of(self._speeds, seq_len, layout=self.layout, max_tokens=caps)
