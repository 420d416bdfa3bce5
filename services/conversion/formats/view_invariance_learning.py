"""View-invariance learning: images alone; two views of an image get the same embedding."""

from __future__ import annotations

from services.conversion.formats.images_alone import ImagesAlone
from services.conversion.task import Task


class ViewInvarianceLearning(ImagesAlone):
    """No annotations."""

    task = Task.VIEW_INVARIANCE_LEARNING
