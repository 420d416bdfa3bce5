"""The images of a dataset on the canvas: decoded once and kept as far as the memory goes, else decoded each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from runner.trainer.image import CHANNELS, Canvas, read_on_canvas, view_of
from runner.trainer.view import View


class ImageStore:
    """The images of a list of names, by position. Safe for several threads.

    The first ones, as many as `cache_bytes_max` lets in, are kept.
    """

    def __init__(self, folder: Path, names: Sequence[str], canvas: Canvas, cache_bytes_max: int) -> None:
        self._folder = folder
        self._names = names
        self.canvas = canvas
        image_bytes = CHANNELS * canvas.height * canvas.width
        kept = min(len(names), cache_bytes_max // image_bytes)
        # Memory that is never written is never used: what is taken grows with the images that were read.
        self._cache = torch.empty((kept, CHANNELS, canvas.height, canvas.width), dtype=torch.uint8)
        self._views: list[View | None] = [None] * kept

    @property
    def cache_bytes(self) -> int:
        """The memory that the cache may come to use."""
        return self._cache.numel()

    def keeps(self, positions: Sequence[int]) -> bool:
        """Whether all these images are in memory."""
        views, kept = self._views, len(self._views)
        return all(at < kept and views[at] is not None for at in positions)

    def copy_kept(self, positions: Sequence[int], into: torch.Tensor) -> list[View]:
        """Copy images that are all in memory into a tensor of as many; their views."""
        torch.index_select(self._cache, 0, torch.tensor(positions), out=into)
        found = [self._views[at] for at in positions]
        return [view for view in found if view is not None]

    def copy(self, at: int, into: torch.Tensor) -> View:
        """Copy one image into uint8, 3 x height x width; how it lies there. Raises UnreadableImage."""
        kept = self._views[at] if at < len(self._views) else None
        if kept is not None:
            into.copy_(self._cache[at])
            return kept
        pixels, view = read_on_canvas(self._folder / self._names[at], self.canvas)
        into.copy_(pixels)
        if at < len(self._views):
            self._cache[at] = pixels
            self._views[at] = view  # after the pixels: another thread may look at any time
        return view

    def blank(self, into: torch.Tensor) -> View:
        """Fill the place of an image that cannot be read."""
        into.fill_(self.canvas.fill_byte)
        return view_of(self.canvas.width, self.canvas.height, self.canvas)
