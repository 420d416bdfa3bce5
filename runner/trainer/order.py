"""Which examples a step sees: a pure function of seed, iteration and dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from runner.trainer.augmentation import seed_of
from runner.trainer.dataset import Example
from services.split.choice import HeadAnnotations
from services.split.label import CATEGORY, NOTHING, RULES, Label, labels_of


class Order:
    """Every example once before any is seen again. Examples have places in an endless order; each batch takes the next.

    `first_iteration` takes the places from `first_place` on: a training that goes on with another batch size sees what
    comes next. A head with annotated images gets at least one in every batch, as far as there are slots.

    `groups` are positions of examples, which may be in several groups; none is empty. With them every group comes once
    before any comes again, and of a group every example once before any comes again.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        heads: int,
        batch_size: int,
        seed: int,
        *,
        first_iteration: int = 0,
        first_place: int = 0,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        assert examples, "an order needs examples"
        self._size = len(examples)
        self._batch_size = batch_size
        self._seed = seed
        self._start = first_place - first_iteration * batch_size
        self._groups = groups
        self._turns: dict[str | int, tuple[int, list[int]]] = {}
        self._targets = [example.targets for example in examples]
        self._labelled = [
            [at for at, example in enumerate(examples) if example.targets[head] is not None] for head in range(heads)
        ]
        # Where every head knows every image there is nothing to look after.
        self._partial = any(len(labelled) < self._size for labelled in self._labelled)
        self._round = -1
        self._permutation: list[int] = []

    def positions(self, iteration: int) -> list[int]:
        """Positions of the examples of the batch that follows `iteration` steps."""
        positions = self._taken(self._start + iteration * self._batch_size)
        return self._with_every_head(positions, iteration) if self._partial else positions

    def _taken(self, place: int) -> list[int]:
        """The positions at a batch's places, of which this is the first."""
        if self._groups is not None:
            return self._balanced(self._groups, place)
        positions: list[int] = []
        while len(positions) < self._batch_size:
            number, offset = divmod(place + len(positions), self._size)
            left = self._batch_size - len(positions)
            positions += self._permuted(number)[offset : offset + left]
        return positions

    def _balanced(self, groups: Sequence[Sequence[int]], place: int) -> list[int]:
        """Of places, one after another, each belongs to another group, until all groups had one."""
        positions: list[int] = []
        for each in range(place, place + self._batch_size):
            turn, offset = divmod(each, len(groups))
            group = self._shuffled("groups", len(groups), turn)[offset]
            members = groups[group]
            again, at = divmod(turn, len(members))
            positions.append(members[self._shuffled(group, len(members), again)[at]])
        return positions

    def _shuffled(self, key: str | int, size: int, turn: int) -> list[int]:
        """The numbers below `size` in the order of a turn."""
        found = self._turns.get(key)
        if found is None or found[0] != turn:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "balanced", key, turn))
            found = self._turns[key] = (turn, torch.randperm(size, generator=generator).tolist())
        return found[1]

    def _permuted(self, number: int) -> list[int]:
        """All examples, in the order of this round."""
        if number != self._round:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", number))
            self._permutation = torch.randperm(self._size, generator=generator).tolist()
            self._round = number
        return self._permutation

    def _with_every_head(self, positions: list[int], iteration: int) -> list[int]:
        for head, labelled in enumerate(self._labelled):
            if not labelled or any(self._has(head, at) for at in positions):
                continue
            chosen = labelled[seed_of(self._seed, "head", head, iteration) % len(labelled)]
            slot = next((slot for slot in reversed(range(len(positions))) if self._spare(positions, slot)), None)
            if slot is not None:
                positions[slot] = chosen
        return positions

    def _has(self, head: int, at: int) -> bool:
        return self._targets[at][head] is not None

    def _spare(self, positions: list[int], slot: int) -> bool:
        """Whether no head has its only annotated image of the batch in this slot."""
        others = positions[:slot] + positions[slot + 1 :]
        heads = range(len(self._labelled))
        return all(not self._has(head, positions[slot]) or any(self._has(head, at) for at in others) for head in heads)


def groups_of(examples: Sequence[Example], annotations: Sequence[HeadAnnotations]) -> list[list[int]]:
    """Positions of examples by category of each head, in the order of their names; those without any are one group."""
    groups: dict[Label, list[int]] = defaultdict(list)
    for at, example in enumerate(examples):
        found = [
            label
            for index, head in enumerate(annotations)
            if not RULES[head.task].never_trains(annotation := head.annotations.get(example.name))
            for label in labels_of(index, RULES[head.task], annotation)
            if label.kind in (CATEGORY, NOTHING)
        ]
        for label in found or [Label(-1, NOTHING)]:
            groups[label].append(at)
    return [groups[label] for label in sorted(groups)]
