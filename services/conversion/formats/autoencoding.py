"""Autoencoding: images alone; the image is reconstructed."""

from __future__ import annotations

from services.conversion.formats.images_alone import ImagesAlone
from services.conversion.task import Task


class Autoencoding(ImagesAlone):
    """No annotations."""

    task = Task.AUTOENCODING
