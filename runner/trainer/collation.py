"""From examples to batches: images read and scaled, changes drawn, targets placed, all stacked.

What a batch holds is a pure function of (seed, iteration) and the dataset. The number of threads, the size of the cache
and an interruption change nothing but the time it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.task import WrongAnnotation
from runner.trainer.augmentation import UNCHANGED, Change, Changes, change_of, changes_anything, seed_of, strengthened
from runner.trainer.batch import Batch, Unreadable
from runner.trainer.dataset import Example, labelled_counts
from runner.trainer.fault import is_fault_of_machine
from runner.trainer.image import CHANNELS
from runner.trainer.loader import Loader
from runner.trainer.order import Order
from runner.trainer.store import ImageStore
from runner.trainer.targets import Targets
from runner.trainer.view import View
from services.chassis.image import UnreadableImage

SECOND = "second picture"
"""What the seed of an image's second picture has more than that of its first."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What the changes of one batch are drawn from."""

    augmentations: job_spec_pb2.Augmentations
    second: job_spec_pb2.Augmentations
    """Of an image's second picture."""
    seed: int
    iteration: int

    def change(self, store: ImageStore, slot: int) -> Change:
        """Of the image in a slot."""
        return change_of(self.augmentations, store.canvas, seed_of(self.seed, self.iteration, slot))

    def second_change(self, store: ImageStore, slot: int) -> Change:
        """Of the second picture of the image in a slot."""
        return change_of(self.second, store.canvas, seed_of(self.seed, self.iteration, slot, SECOND))


class Collation:
    """Makes batches out of a dataset's examples.

    `pinned`: in memory that a GPU copies from while the CPU goes on. `micro_batches`: parts of each training batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        heads: Sequence[job_spec_pb2.Head],
        store: ImageStore,
        *,
        pinned: bool = False,
        micro_batches: int = 1,
    ) -> None:
        self.examples = examples
        self.tasks = [task_of(head.task) for head in heads]
        self.head_ids = [head.id for head in heads]
        self.store = store
        self.pinned = pinned
        self.micro_batches = micro_batches
        self.opens_files = any(task.opens_files for task in self.tasks)
        self.labelled = labelled_counts(examples, len(heads))
        self.pictures_each = max((task.views for task in self.tasks), default=1)

    def assembly(self, positions: Sequence[int], draws: Draws | None = None, micro_batches: int = 1) -> BatchAssembly:
        """The batch of these examples in the making; changed where there is something to draw from."""
        return BatchAssembly(self, positions, draws, micro_batches)

    def training_loader(
        self,
        order: Order,
        *,
        augmentations: job_spec_pb2.Augmentations,
        seed: int,
        iterations: range,
        threads: int,
    ) -> Loader:
        """The batches of the steps that follow these numbers of steps."""
        second = strengthened(augmentations)
        first = second if all(task.views > 1 for task in self.tasks) else augmentations
        changed = self.pictures_each > 1 or changes_anything(first)

        def assembly(iteration: int) -> BatchAssembly:
            draws = Draws(augmentations=first, second=second, seed=seed, iteration=iteration) if changed else None
            return self.assembly(order.positions(iteration), draws, self.micro_batches)

        return Loader(map(assembly, iterations), threads)

    def validation_loader(self, *, batch_size: int, threads: int) -> Loader:
        """Every example once, in order. Pictures are as they are; second ones are changed, each time alike."""
        count = len(self.examples)
        none = job_spec_pb2.Augmentations()
        second = strengthened(none)

        def assembly(first: int) -> BatchAssembly:
            draws = Draws(augmentations=none, second=second, seed=0, iteration=first)
            positions = range(first, min(count, first + batch_size))
            return self.assembly(positions, draws if self.pictures_each > 1 else None)

        return Loader(map(assembly, range(0, count, batch_size)), threads)


class BatchAssembly:
    """One batch in the making. Where nothing has to be opened it is one part, else one for each image."""

    def __init__(
        self, collation: Collation, positions: Sequence[int], draws: Draws | None, micro_batches: int = 1
    ) -> None:
        self._collation = collation
        self._parts = min(micro_batches, len(positions))
        self._positions = positions
        self._draws = draws
        self._examples = tuple(collation.examples[at] for at in positions)
        count = len(positions)
        canvas = collation.store.canvas
        # Whole pictures are copied into it: an empty one costs nothing.
        self._pictures = torch.empty(
            (count * collation.pictures_each, CHANNELS, canvas.height, canvas.width),
            dtype=torch.uint8,
            pin_memory=collation.pinned,
        )
        self._views: list[View | None] = [None] * count
        self._changes: list[Change] = [UNCHANGED] * len(self._pictures)
        self._placed: list[list[Any | None]] = [[None] * count for _ in collation.tasks]
        self._broken: dict[int, str] = {}
        self._wrong: list[tuple[int, Unreadable]] = []

    def parts(self) -> Sequence[Callable[[], None]]:
        """One for all images where all are in memory and no target is a file."""
        collation = self._collation
        if not collation.opens_files and collation.store.keeps(self._positions):
            return [self._copy_kept]
        return [partial(self._read, slot) for slot in range(len(self._positions))]

    def finish(self) -> Batch:
        """Stack what the parts have made."""
        collation = self._collation
        count = len(self._positions)
        if collation.pictures_each > 1:
            self._pictures[count:] = self._pictures[:count]
        targets = [Targets.of(task, placed) for task, placed in zip(collation.tasks, self._placed, strict=True)]
        if collation.pinned:
            targets = [None if each is None else each.pinned() for each in targets]
        broken = [
            Unreadable(name=self._examples[slot].name, reason=reason, files=len(collation.examples))
            for slot, reason in sorted(self._broken.items())
        ]
        wrong = [found for _, found in sorted(self._wrong, key=lambda each: (each[0], each[1].what))]
        changes = None if self._draws is None else Changes.of(self._changes)
        if changes is not None and collation.pinned:
            changes = changes.pinned()
        whole = Batch(
            pictures=self._pictures,
            changes=changes,
            fill=collation.store.canvas.fill,
            targets=tuple(targets),
            examples=self._examples,
            views=tuple(view for view in self._views if view is not None),
            readable=tuple(slot not in self._broken for slot in range(count)),
            unreadable=(*broken, *wrong),
        )
        return replace(whole, micro_batches=self._divided(whole)) if self._parts > 1 else whole

    def _divided(self, whole: Batch) -> tuple[Batch, ...]:
        """The batch in parts of about the same size."""
        collation, count = self._collation, whole.images
        ends = [count * number // self._parts for number in range(self._parts + 1)]
        parts = []
        for first, last in pairwise(ends):
            places = torch.cat([torch.arange(first, last) + count * n for n in range(collation.pictures_each)])
            pairs = zip(collation.tasks, self._placed, strict=True)
            targets = [Targets.of(task, placed[first:last]) for task, placed in pairs]
            pictures = whole.pictures[places]
            changes = None if whole.changes is None else whole.changes.of_pictures(places)
            if collation.pinned:
                targets = [None if each is None else each.pinned() for each in targets]
                pictures, changes = pictures.pin_memory(), None if changes is None else changes.pinned()
            parts.append(
                replace(
                    whole,
                    pictures=pictures,
                    changes=changes,
                    targets=tuple(targets),
                    examples=whole.examples[first:last],
                    views=whole.views[first:last],
                    readable=whole.readable[first:last],
                    unreadable=(),
                    shares=tuple(
                        part.labelled / all_.labelled if part is not None and all_ is not None else 0.0
                        for part, all_ in zip(targets, whole.targets, strict=True)
                    ),
                )
            )
        return tuple(parts)

    def _copy_kept(self) -> None:
        views = self._collation.store.copy_kept(self._positions, self._pictures[: len(self._positions)])
        for slot, view in enumerate(views):
            self._put(slot, view)

    def _read(self, slot: int) -> None:
        store = self._collation.store
        try:
            view = store.copy(self._positions[slot], self._pictures[slot])
        except UnreadableImage as error:
            if is_fault_of_machine(error):
                raise
            self._broken[slot] = str(error)
            self._views[slot] = store.blank(self._pictures[slot])
        else:
            self._put(slot, view)

    def _put(self, slot: int, view: View) -> None:
        """Draw the image's change and place its targets."""
        if self._draws is not None:
            store = self._collation.store
            change = self._draws.change(store, slot)
            self._changes[slot] = change
            view = view.then(change.matrix)
            if self._collation.pictures_each > 1:
                self._changes[len(self._positions) + slot] = self._draws.second_change(store, slot)
        self._views[slot] = view
        targets = self._examples[slot].targets
        for index, (task, target) in enumerate(zip(self._collation.tasks, targets, strict=True)):
            if target is None:
                continue
            try:
                self._placed[index][slot] = task.place(target, view)
            except (UnreadableImage, WrongAnnotation) as error:
                if is_fault_of_machine(error):
                    raise
                found = Unreadable(
                    name=self._examples[slot].name,
                    reason=str(error),
                    files=self._collation.labelled[index],
                    what=f"map for head {self._collation.head_ids[index]} of image",
                )
                self._wrong.append((slot, found))
