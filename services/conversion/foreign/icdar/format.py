"""ICDAR 2013 and 2015: quadrilaterals around texts (a text file an image), or words (one file with all texts).

img_1.jpg with gt_img_1.txt or img_1.txt, in one folder or two     quadrilateral detection, one category, `text`
word_1.png … with gt.txt                                           scene text recognition
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.document_sink import DocumentSink
from services.conversion.foreign.file_sink import FileSink
from services.conversion.foreign.format import (
    Files,
    ForeignAnnotation,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    Unannotated,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.icdar.lines import CATEGORY, ILLEGIBLE, read_line, read_word, text_of
from services.conversion.foreign.image_names import is_image, locate, missing_image_message, native_images
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.split import in_split
from services.conversion.foreign.text_quads import TextQuads, quad_dataset
from services.conversion.formats.names import Names
from services.conversion.formats.number import written
from services.conversion.formats.quadrilateral_detection import Quads
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.task import Task

PREFIX, LABELS, IMAGES, WORDS = "gt_", "gt", "images", "gt.txt"

LOST = {
    "crowd": "crowds are written as single objects: ICDAR has none",
    "category": "categories are left out: in ICDAR's files everything is a text",
    "text": "texts of quadrilaterals are not known: they are written as nothing",
    "order": "tokens come back in another order, and only those that are used",
    "illegible": f"texts are {ILLEGIBLE!r}, which for ICDAR says that nobody can read them",
    "token": "tokens of several characters are written one after the other: read again they are single characters",
}


class Icdar:
    """Quadrilaterals around texts, or texts."""

    name = "ICDAR"
    tasks: Sequence[Task] = (Task.QUADRILATERAL_DETECTION, Task.SCENE_TEXT_RECOGNITION)
    copies_images = False
    looks_for = (
        "text files gt_<image>.txt with four or eight numbers and a text a line, or gt.txt with images and texts"
    )

    async def recognises(self, files: Files) -> bool:
        if _words(files.paths) and any(map(is_image, files.paths)):
            return read_word(await _first_line(files, _words(files.paths))) is not None
        found = [path for path in files.paths if PurePosixPath(path).name.startswith(PREFIX) and path.endswith(".txt")]
        if not found:
            return False
        line = read_line(await _first_line(files, found[0]))
        return line is not None and line.problem is None

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        paths = in_split(list(files.paths), request.split)
        words = _words(paths)
        if words and request.task is not Task.QUADRILATERAL_DETECTION:
            return _open_words(words, (await files.read(words)).decode("utf-8-sig", "replace"), paths, request, report)
        found = [path for path in paths if path.lower().endswith(".txt")]
        if not found:
            message = "there is no text file: ICDAR has gt_<image>.txt, or gt.txt for words"
            raise ForeignError("missing_file", message, Place(file=f"{LABELS}/"))
        texts = {PurePosixPath(path).stem.removeprefix(PREFIX): path for path in found}
        kept = 0

        def take(path: str, content: bytes) -> None:
            nonlocal kept
            lines = content.decode("utf-8-sig", "replace").splitlines()
            kept += sum(text_of(line) not in ("", ILLEGIBLE) for line in lines)

        await files.read_each(list(texts.values()), take, kept=False)
        if kept:
            message = f"the texts of {kept} quadrilaterals are left out: natively a quadrilateral has a category alone"
            report.warn("not_kept", message, Place(file=found[0]), value="text")
        codec = TextQuads(parse=read_line, null=request.unannotated is Unannotated.NULL)
        names = Names(names=(CATEGORY,))
        return quad_dataset(paths, texts, names, codec, request, report, place=Place(file=found[0]))

    def write(self, request: WriteRequest) -> Writing:
        if request.task is Task.SCENE_TEXT_RECOGNITION:
            losses = Losses(sentences=LOST, file=WORDS)
            longer = sum(len(token) > 1 for token in request.vocabulary.names)
            if longer:
                losses.add({"token": longer})
            if list(request.vocabulary.names) != sorted(request.vocabulary.names):
                losses.add({"order": len(request.vocabulary.names)})
            sink = DocumentSink(
                path=WORDS, images=IMAGES, head=b"", between=b"", tail=b"", item=_written_word, losses=losses
            )
            return Writing(codec=IcdarWords(), sink=sink)
        losses = Losses(sentences=LOST, file=f"{LABELS}/")
        if request.vocabulary.names != (CATEGORY,):
            losses.add({"category": len(request.vocabulary.names)})
        files = FileSink(
            labels=LABELS, images=IMAGES, suffix=".txt", prefix=PREFIX, content=_written_file, losses=losses
        )
        return Writing(codec=IcdarQuads(), sink=files)


@dataclass(frozen=True, kw_only=True)
class IcdarQuads:
    """Writes the lines of one image."""

    def read(self, value: object, size: ImageSize, place: Place, vocabulary: Names, report: Report) -> Quads | None:
        raise AssertionError("a codec that writes does not read")

    def write(self, annotation: Quads, size: ImageSize, vocabulary: Names) -> Fragment:
        lines = []
        for each in annotation:
            numbers = ",".join(str(written(number)) for point in each.quad for number in point)
            lines.append(f"{numbers},{ILLEGIBLE if each.ignore else ''}\n".encode())
        lost = {"crowd": sum(each.crowd for each in annotation), "text": sum(not each.ignore for each in annotation)}
        return Fragment(pieces=tuple(lines), lost={kind: count for kind, count in lost.items() if count})


@dataclass(frozen=True, kw_only=True)
class IcdarWords:
    """Texts, as tuples of characters."""

    def read(
        self, value: str, size: ImageSize, place: Place, vocabulary: Names, report: Report
    ) -> tuple[str, ...] | None:
        if any(character.isspace() for character in value):
            message = f"the text {value[:60]!r} has white space in it, which natively no text has: cut it into words"
            report.error("bad_name", message, place, value=value)
            return None
        return tuple(value)

    def write(self, annotation: tuple[str, ...], size: ImageSize, vocabulary: Names) -> Fragment:
        text = "".join(annotation)
        return Fragment(pieces=(text.encode(),), lost={"illegible": 1} if text == ILLEGIBLE else {})


def _open_words(path: str, text: str, paths: Sequence[str], request: ReadRequest, report: Report) -> ForeignDataset:
    lines = [(number, read_word(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    files = dict.fromkeys((each for each in paths if is_image(each)), 0)
    names = [word[0] for _, word in lines if word is not None]
    found = locate(names, files, preferred=f"{path.rpartition('/')[0]}/".lstrip("/"))
    words: dict[str, tuple[int, str]] = {}
    for number, word in lines:
        place = Place(file=path, line=number, image=word[0] if word else "")
        if word is None:
            report.error("syntax", 'the line must be an image, a comma and a "text"', place)
        elif word[0] not in found:
            report.error("missing_image", missing_image_message(word[0], paths), place, value=word[0])
        elif found[word[0]] in words:
            report.error("repeated_image", "the image stands twice, and the first line counts", place, value=word[0])
        else:
            words[found[word[0]]] = (number, word[1])
    tokens = tuple(sorted({c for _, word in words.values() for c in word if not c.isspace() and c.isprintable()}))
    if not tokens:
        raise ForeignError("empty_vocabulary", "no image has a text, so that there is no token", Place(file=path))
    images = native_images(files)
    own = {image.name: words.get(image.path) for image in images}

    def annotation(image: ImageEntry) -> ForeignAnnotation | None:
        word = own[image.name]
        if word is None or word[1] == ILLEGIBLE:
            return None
        return ForeignAnnotation(value=word[1], place=Place(file=path, line=word[0], image=image.name))

    return ForeignDataset(
        task=Task.SCENE_TEXT_RECOGNITION,
        vocabulary=Names(names=tokens),
        codec=IcdarWords(),
        images=images,
        annotation=annotation,
    )


def _words(paths: Any) -> str:
    """The file of words, if there is one."""
    return next((path for path in paths if PurePosixPath(path).name == WORDS), "")


async def _first_line(files: Files, path: str) -> str:
    text = (await files.head(path)).decode("utf-8-sig", "replace")
    return next((line for line in text.splitlines() if line.strip()), "")


def _written_file(image: ImageEntry, written: Fragment) -> bytes:
    return b"".join(written.pieces)


def _written_word(image: ImageEntry, number: int, written: Fragment) -> bytes:
    text = written.pieces[0].decode().replace("\\", "\\\\").replace('"', '\\"')
    return f'{image.name}, "{text}"\n'.encode()
