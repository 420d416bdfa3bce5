"""What the lines of a YOLO dataset look like, to tell its kinds apart: all have a data.yaml and text files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.conversion.foreign.format import Files
from services.conversion.foreign.image_names import is_image
from services.conversion.foreign.yolo.layout import DESCRIPTIONS

LOOKS_FOR = "data.yaml with `names`, and text files with lines"
FILES_MAX = 32
"""Files of labels that are looked into."""
BOX = 5
"""A class and four numbers."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How many columns lines have. `points`: the description tells of keypoints."""

    has_description: bool = False
    points: bool = False
    columns: frozenset[int] = frozenset()


async def columns_of(files: Files) -> Columns:
    """Looks into the description and some files of labels."""
    description = next((name for name in DESCRIPTIONS if name in files.paths), "")
    if not description:
        return Columns()
    head = await files.read(description)
    if b"names" not in head or not any(map(is_image, files.paths)):
        return Columns()
    columns: set[int] = set()
    for path in _some(files):
        lines = (await files.head(path)).decode("utf-8-sig", "replace").splitlines()[:-1] or [
            (await files.head(path)).decode("utf-8-sig", "replace")
        ]
        columns.update(len(line.split()) for line in lines if line.strip())
    return Columns(has_description=True, points=b"kpt_shape" in head, columns=frozenset(columns))


def _some(files: Files) -> Sequence[str]:
    """Files of labels: those in a folder of labels, or beside an image."""
    stems = {path.rpartition(".")[0] for path in files.paths if is_image(path)}
    found = [
        path
        for path in files.paths
        if path.endswith(".txt") and ("labels" in path.split("/")[:-1] or path.removesuffix(".txt") in stems)
    ]
    return [path for path in found if files.paths[path]][:FILES_MAX]
