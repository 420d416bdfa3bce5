"""Batches: which images a step sees, read, scaled, changed at random and stacked, some steps ahead of the training.

What a batch holds is a pure function of (seed, iteration) and the dataset. The number of threads, the size of the cache
and an interruption change nothing but the time it takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from sihlai.scheduler.v1 import job_spec_pb2

from runner.tasks import task_of
from runner.tasks.task import Targets
from runner.trainer.augmentation import augment, changes_anything, seed_of
from runner.trainer.dataset import Example
from runner.trainer.image import CHANNELS, Canvas, letterbox
from services.chassis.image import UnreadableImage, read_image

BATCHES_AHEAD_PER_THREAD = 2


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image that was left out of its batch, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images in uint8, batch x 3 x height x width, and the targets of each head, None where none of them is annotated.

    Images that cannot be read are left out, so there may be fewer than were asked for, or none.
    """

    images: torch.Tensor
    targets: tuple[Targets | None, ...]
    unreadable: tuple[Unreadable, ...]


class ImageStore:
    """The images of a list of names, scaled to the canvas, by position. Safe for several threads.

    The first ones, as many as the limit lets in, are decoded once and kept; the others are decoded each time.
    """

    def __init__(self, folder: Path, names: Sequence[str], canvas: Canvas, cache_bytes_max: int) -> None:
        self._folder = folder
        self._names = names
        self._canvas = canvas
        image_bytes = CHANNELS * canvas.height * canvas.width
        kept = min(len(names), cache_bytes_max // image_bytes)
        # Memory that is never written is never used: what is taken grows with the images that were read.
        self._cache = torch.empty((kept, CHANNELS, canvas.height, canvas.width), dtype=torch.uint8)
        self._cached = [False] * kept

    @property
    def cache_bytes(self) -> int:
        """The memory that the cache may come to use."""
        return self._cache.numel()

    def read(self, positions: Sequence[int]) -> tuple[torch.Tensor, dict[int, str]]:
        """The images at these positions, stacked; and by slot why one cannot be read, its place then being blank."""
        missing = [slot for slot, at in enumerate(positions) if at >= len(self._cached) or not self._cached[at]]
        if not missing:
            return self._cache[torch.tensor(positions)], {}
        images = torch.zeros((len(positions), *self._cache.shape[1:]), dtype=torch.uint8)
        broken: dict[int, str] = {}
        for slot, at in enumerate(positions):
            try:
                images[slot] = self._image(at)
            except UnreadableImage as error:
                broken[slot] = str(error)
        return images, broken

    def _image(self, at: int) -> torch.Tensor:
        if at >= len(self._cached):
            return letterbox(read_image(self._folder / self._names[at]), self._canvas)
        if not self._cached[at]:
            self._cache[at] = letterbox(read_image(self._folder / self._names[at]), self._canvas)
            self._cached[at] = True  # after the pixels: another thread may look at any time
        return self._cache[at]


class Collation:
    """Makes batches out of a dataset's examples."""

    def __init__(
        self, examples: Sequence[Example], heads: Sequence[job_spec_pb2.Head], store: ImageStore, canvas: Canvas
    ) -> None:
        self._examples = examples
        self._tasks = [task_of(head.task) for head in heads]
        self._store = store
        self._canvas = canvas

    def batch(
        self,
        positions: Sequence[int],
        augmentations: job_spec_pb2.Augmentations | None = None,
        seeds: Sequence[int] = (),
    ) -> Batch:
        """The batch of these examples, each changed by the augmentations with its own seed where they are given."""
        images, broken = self._store.read(positions)
        if augmentations is not None:
            changed = (
                augment(image, augmentations, fill_byte=self._canvas.fill_byte, seed=seed)
                for image, seed in zip(images, seeds, strict=True)
            )
            images = torch.stack(list(changed))
        if broken:
            whole = [slot for slot in range(len(positions)) if slot not in broken]
            images = images[whole]
        examples = [self._examples[at] for slot, at in enumerate(positions) if slot not in broken]
        unreadable = (
            Unreadable(name=self._examples[positions[slot]].name, reason=reason) for slot, reason in broken.items()
        )
        targets = tuple(
            task.batch([example.targets[index] for example in examples]) for index, task in enumerate(self._tasks)
        )
        return Batch(images=images, targets=targets, unreadable=tuple(unreadable))


class Order:
    """Which examples the step after `iteration` steps sees: every example once before any is seen again.

    A head with annotated images gets at least one in every batch, as far as there are slots.
    """

    def __init__(self, examples: Sequence[Example], heads: int, batch_size: int, seed: int) -> None:
        assert examples, "an order needs examples"
        self._size = len(examples)
        self._batch_size = batch_size
        self._seed = seed
        self._targets = [example.targets for example in examples]
        self._labelled = [
            [at for at, example in enumerate(examples) if example.targets[head] is not None] for head in range(heads)
        ]
        # Where every head knows every image there is nothing to look after.
        self._partial = any(len(labelled) < self._size for labelled in self._labelled)
        self._round = -1
        self._permutation: list[int] = []

    def positions(self, iteration: int) -> list[int]:
        """Positions of the batch's examples."""
        first = iteration * self._batch_size
        positions = [self._at(place) for place in range(first, first + self._batch_size)]
        return self._with_every_head(positions, iteration) if self._partial else positions

    def _at(self, place: int) -> int:
        number, offset = divmod(place, self._size)
        if number != self._round:
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", number))
            self._permutation = torch.randperm(self._size, generator=generator).tolist()
            self._round = number
        return self._permutation[offset]

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


class Loader:
    """Makes one batch after another, some ahead of what is asked for. A context manager; use it from one thread.

    `positions` are those of each batch, read in the thread that uses the loader. `make` gets a batch's number and
    positions and runs in the loader's threads; with 0 threads it runs when its batch is asked for.
    """

    def __init__(
        self,
        make: Callable[[int, Sequence[int]], Batch],
        positions: Iterator[tuple[int, Sequence[int]]],
        threads: int,
    ) -> None:
        self._make = make
        self._positions = positions
        self._ahead = threads * BATCHES_AHEAD_PER_THREAD
        self._waiting: deque[Future[Batch]] = deque()
        self._threads = _executor(threads) if threads else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, as soon as it is made. Raises what making it raised."""
        if self._threads is None:
            return self._make(*next(self._positions))
        while len(self._waiting) <= self._ahead and (following := next(self._positions, None)) is not None:
            self._waiting.append(self._threads.submit(self._make, *following))
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft().result()


def _executor(threads: int) -> ThreadPoolExecutor:
    # Each with one core: a team of torch's own in every thread would spin on the cores that the model computes on
    # (a step of a small model took two thirds longer). The setting is the thread's own.
    return ThreadPoolExecutor(threads, "loader", initializer=torch.set_num_threads, initargs=(1,))


def training_loader(
    collation: Collation, order: Order, *, spec: job_spec_pb2.JobSpec, iterations: range, threads: int
) -> Loader:
    """The batches of the steps that follow these numbers of steps."""
    augmentations = spec.data.augmentations if changes_anything(spec.data.augmentations) else None
    seed = spec.trainer.seed

    def make(iteration: int, positions: Sequence[int]) -> Batch:
        slots = range(len(positions)) if augmentations is not None else ()
        return collation.batch(positions, augmentations, [seed_of(seed, iteration, slot) for slot in slots])

    return Loader(make, ((iteration, order.positions(iteration)) for iteration in iterations), threads)


def validation_loader(collation: Collation, examples: int, *, batch_size: int, threads: int) -> Loader:
    """Every example once, in order."""
    batches = (range(first, min(examples, first + batch_size)) for first in range(0, examples, batch_size))
    return Loader(lambda _, positions: collation.batch(positions), enumerate(batches), threads)
