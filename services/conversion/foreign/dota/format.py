"""DOTA: boxes that are turned, in aerial photos.

    images/       the photos
    labelTxt/     a text an image: eight numbers, a category, and whether it is difficult; before them perhaps lines
                  such as `imagesource:GoogleEarth` and `gsd:0.146`

What is difficult is to be ignored, as DOTA's evaluation does it.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from services.chassis.errors import FailedPrecondition, Reason
from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.file_sink import FileSink
from services.conversion.foreign.format import (
    Files,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    Unannotated,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.image_names import is_image
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.split import in_split
from services.conversion.foreign.text_quads import QuadLine, TextQuads, quad_dataset
from services.conversion.formats.names import RESERVED_NAMES, Names, is_name
from services.conversion.formats.number import NumberError, read_number, written
from services.conversion.formats.quadrilateral_detection import Quads
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.task import Task

LABELS, IMAGES = "labelTxt", "images"
NUMBERS = 8
HEADERS = ("imagesource", "gsd", "acquisition dates")
FLAGS = {"0": False, "1": True, "2": True}
LOST = {
    "crowd": "crowds are written as single objects: DOTA has none",
    "order": "categories come back in another order, by name",
    "unused": "categories have no object, and so no place in DOTA's files",
}


class Dota:
    """Boxes that are turned."""

    name = "DOTA"
    tasks: Sequence[Task] = (Task.QUADRILATERAL_DETECTION,)
    copies_images = False
    looks_for = f"text files in a folder {LABELS}* with 8 numbers, a category and a flag a line"

    async def recognises(self, files: Files) -> bool:
        return any(_is_labels(path) for path in files.paths) and any(map(is_image, files.paths))

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        paths = in_split(list(files.paths), request.split)
        folders = sorted({path.rpartition("/")[0] for path in paths if _is_labels(path)})
        if not folders:
            folders = sorted({path.rpartition("/")[0] for path in paths if path.lower().endswith(".txt")})
        if len(folders) != 1:
            found = f"there are {', '.join(folders[:5])}: keep one" if folders else "there are no text files: add them"
            raise ForeignError("missing_file", f"{found}, in {LABELS}/", Place(file=f"{LABELS}/"))
        place = Place(file=f"{folders[0]}/")
        texts = {
            PurePosixPath(path).stem: path
            for path in paths
            if path.rpartition("/")[0] == folders[0] and path.lower().endswith(".txt")
        }
        names: Counter[str] = Counter()

        def take(path: str, content: bytes) -> None:
            lines = map(read_line, content.decode("utf-8-sig", "replace").splitlines())
            names.update(line.category for line in lines if line is not None and line.category)

        await files.read_each(list(texts.values()), take, kept=False)
        good = tuple(sorted(name for name in names if is_name(name) and name not in RESERVED_NAMES))
        if not good:
            raise ForeignError("empty_vocabulary", "no line has a category, so that there is none", place)
        codec = TextQuads(parse=read_line, null=request.unannotated is Unannotated.NULL)
        return quad_dataset(paths, texts, Names(names=good), codec, request, report, place=place)

    def write(self, request: WriteRequest) -> Writing:
        vocabulary: Names = request.vocabulary
        for name in vocabulary.names:
            if name.split() != name.split(" "):
                message = f"the category {name!r} has spaces that DOTA's files cannot say: rename it"
                raise FailedPrecondition(Reason.DATASET_INVALID, message, {"category": name})
        return Writing(codec=DotaQuads(), sink=DotaSink(vocabulary))


class DotaSink(FileSink):
    """Writes the files, and looks at which categories they say."""

    def __init__(self, vocabulary: Names) -> None:
        losses = Losses(sentences=LOST, file=f"{LABELS}/")
        super().__init__(labels=LABELS, images=IMAGES, suffix=".txt", content=_content, losses=losses)
        self._names = vocabulary.names
        self._used: set[str] = set()

    def add(self, image: ImageEntry, written: Fragment | None) -> None:
        """One image's file."""
        super().add(image, written)
        for piece in written.pieces if written is not None else ():
            self._used.add(piece.decode().split(maxsplit=NUMBERS)[NUMBERS].rpartition(" ")[0])

    def end(self) -> None:
        """Account for what the files do not say."""
        used = [name for name in self._names if name in self._used]
        lost = {"unused": len(self._names) - len(used), "order": len(used) if used != sorted(used) else 0}
        self.losses.add({what: count for what, count in lost.items() if count})


@dataclass(frozen=True, kw_only=True)
class DotaQuads:
    """Writes the lines of one image."""

    def read(self, value: object, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> Quads | None:
        raise AssertionError("a codec that writes does not read")

    def write(self, annotation: Quads, size: ImageSize, vocabulary: Names) -> Fragment:
        lines = []
        for each in annotation:
            numbers = " ".join(str(written(number)) for point in each.quad for number in point)
            lines.append(f"{numbers} {each.category} {int(each.ignore)}\n".encode())
        crowds = sum(each.crowd for each in annotation)
        return Fragment(pieces=tuple(lines), lost={"crowd": crowds} if crowds else {})


def read_line(line: str) -> QuadLine | None:
    """What a line says; None for one of the headers."""
    if line.partition(":")[0].strip().lower() in HEADERS and ":" in line:
        return None
    parts = line.split()
    if len(parts) < NUMBERS + 1:
        problem = f"the line has {len(parts)} parts, but must have eight numbers and a category"
        return QuadLine(problem=("wrong_coordinate_count", problem)) if parts else None
    try:
        numbers = tuple(map(read_number, parts[:NUMBERS]))
    except NumberError as error:
        return QuadLine(problem=(error.rule, f"the line has what is no coordinate: {error}"))
    rest = parts[NUMBERS:]
    flag = rest[-1] if len(rest) > 1 and rest[-1] in FLAGS else ""
    return QuadLine(
        numbers=numbers, category=" ".join(rest[:-1] if flag else rest), ignore=FLAGS[flag] if flag else False
    )


def _content(image: ImageEntry, written: Fragment) -> bytes:
    return b"".join(written.pieces)


def _is_labels(path: str) -> bool:
    folder = path.rpartition("/")[0].rpartition("/")[2]
    return folder.startswith(LABELS) and path.lower().endswith(".txt")
