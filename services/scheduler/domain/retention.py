"""Which checkpoints of a job need not be kept. Pure: no store, no clock, no protos."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from services.scheduler.domain.job import SECOND_US, Checkpoint, CheckpointKey

MINUTE_US = 60 * SECOND_US


class Retention(Struct, frozen=True, kw_only=True):
    """`kept`: checkpoints of a job beside the last and the best one, spread evenly over its iterations.

    One that is younger than `settle_minutes` stays: its runner may not have heard yet that it is recorded, and would
    report it again.
    """

    kept: int
    settle_minutes: float

    def superfluous(
        self,
        checkpoints: Sequence[Checkpoint],
        *,
        iterations_max: int,
        needed: frozenset[CheckpointKey],
        now_us: int,
    ) -> list[Checkpoint]:
        """Of all checkpoints of a job, oldest first, those that may go. `needed` are kept whatever else holds.

        The iterations are cut into `kept` equal parts, and the newest of each part stays: asked again after they went,
        or after new ones came, the same ones stay.
        """
        newest_of_part = {self._part(each, iterations_max): each.key for each in checkpoints}
        stays = {*needed, *newest_of_part.values(), *(each.key for each in checkpoints if each.best)}
        if checkpoints:
            stays.add(checkpoints[-1].key)
        settled_us = now_us - round(self.settle_minutes * MINUTE_US)
        return [each for each in checkpoints if each.key not in stays and each.create_time_us <= settled_us]

    def _part(self, checkpoint: Checkpoint, iterations_max: int) -> int:
        return min(self.kept - 1, (checkpoint.key.iteration - 1) * self.kept // max(1, iterations_max))
