"""Records of a dataset as exhibits of a contact sheet: which ones, and what each shows before and after. Pure.

Nothing here fails for what is wrong with an image or an annotation: a tile then says what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AnySet
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from PIL import Image

from services.chassis.image import FULL_RANGE, ImageRange, UnreadableImage, read_image
from services.conversion.conveyor.chunk import Recipe
from services.conversion.dataset.annotations import Annotations, raw_records
from services.conversion.dataset.metadata import AnnotationSet
from services.conversion.dataset.record import RawRecord
from services.conversion.finding import Report
from services.conversion.formats import FORMATS
from services.conversion.formats.colors import Color, Colors
from services.conversion.index import ImageEntry, ImageSize, Index
from services.conversion.picture.canvas import FINE, NO_COLORS, Canvas, scaled
from services.conversion.picture.drawing import DRAWINGS
from services.conversion.picture.sheet import Exhibit, Layout, Tile, blank, compose
from services.conversion.task import Task

Item = TypeVar("Item")

BLANK_SHAPE = (4, 3)
UNLABELLED = "unlabelled: nothing is known"
NEGATIVE = "labelled: nothing is there"
IMAGE_ALONE = "the image alone"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a contact sheet shows: at least one record, and what is done to each."""

    recipe: Recipe
    records: tuple[RawRecord, ...]
    subtitle: str
    """What the sheet says of itself."""
    image_range: ImageRange = FULL_RANGE


def choose_entries(
    index: Index, annotations: Annotations, count: int, preferred: AnySet[str] = frozenset()
) -> tuple[ImageEntry, ...]:
    """Some images, spread over the dataset, by name: up to half of them from the `preferred`, then labelled ones.

    Images where nothing is there come after those, and unlabelled ones last.
    """
    liked: list[ImageEntry] = []
    ranks: tuple[list[ImageEntry], list[ImageEntry], list[ImageEntry]] = ([], [], [])
    stems = Counter(PurePosixPath(entry.name).stem for entry in index.images) if annotations.by_stem else Counter()
    for entry in index.images:
        if entry.name in preferred:
            liked.append(entry)
        ranks[_rank(entry, annotations, stems)].append(entry)
    chosen = {entry.name: entry for entry in spread(liked, (count + 1) // 2)}
    for rank in ranks:
        room = count - len(chosen)
        rest = [entry for entry in rank if entry.name not in chosen] if room else []
        chosen |= {entry.name: entry for entry in spread(rest, room)}
    return tuple(chosen[name] for name in sorted(chosen))


def select(
    chosen: AnnotationSet,
    annotations: Annotations,
    entries: Sequence[ImageEntry],
    recipe: Recipe,
    files: int,
    image_range: ImageRange = FULL_RANGE,
) -> Selection:
    """Some images of an annotation set, of which there are so many files."""
    keys = [PurePosixPath(entry.name).stem if annotations.by_stem else entry.name for entry in entries]
    values = {key: annotations.values[key] for key in keys if key in annotations.values}
    few = Annotations(values=values, by_stem=annotations.by_stem)
    # What is wrong with the dataset is told elsewhere.
    records = raw_records(chosen, few, Index(entries=tuple(entries)), {}, Report(findings_max=0))
    named = f", annotation set {chosen.name}" if chosen.name else ""
    subtitle = f"{len(entries):,} of {files:,} images{named}"
    return Selection(recipe=recipe, records=tuple(records), subtitle=subtitle, image_range=image_range)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """So many of the items, or all, as far apart as can be."""
    count = min(count, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def tiles_an_image(recipe: Recipe) -> int:
    """Two, before and after, unless nothing is converted."""
    return 2 if recipe.steps else 1


def exhibit_of(
    recipe: Recipe,
    record: RawRecord,
    image: bytes | str,
    layout: Layout,
    image_range: ImageRange = FULL_RANGE,
) -> Exhibit:
    """An image with its annotation and what becomes of it. `image` is the file's content, or why there is none.

    A record with a `path` has its MapFile in the value's place, or null.
    """
    report = Report(findings_max=0, lenient=True)
    size = record.image.size
    annotation = None
    if record.value is not None:
        annotation = recipe.reader.read(record.value, size, record.place, recipe.source_vocabulary, report)
    shown = [(recipe.source, annotation, recipe.source_vocabulary)]
    vocabulary = recipe.source_vocabulary
    for step in recipe.make_steps():
        if annotation is not None:
            annotation = step.convert(annotation, size, record.place, report)
        vocabulary = step.vocabulary
    if recipe.steps:
        shown.append((recipe.target, annotation, vocabulary))
    background = _background(image, size, layout, image_range)
    own = recipe.source_vocabulary.colors if isinstance(recipe.source_vocabulary, Colors) else NO_COLORS
    tiles = [_tile(background, size, task, found, words, layout, own) for task, found, words in shown]
    return Exhibit(name=record.image.name, tiles=tiles, remark=_remark(report))


def page_of(selection: Selection, exhibits: Sequence[Exhibit], layout: Layout) -> Image.Image:
    """The contact sheet."""
    recipe = selection.recipe
    path = [recipe.source, *(end for _, end, _ in recipe.steps)]
    headings = [f"before: {recipe.source}", f"after: {recipe.target}"] if recipe.steps else []
    return compose(" → ".join(path), selection.subtitle, headings, exhibits, layout)


def _rank(entry: ImageEntry, annotations: Annotations, stems: Counter[str]) -> int:
    key = PurePosixPath(entry.name).stem if annotations.by_stem else entry.name
    located = annotations.values.get(key)
    if located is None or not located.given or located.refused or stems[key] > 1:
        return 2
    return 1 if located.empty else 0


def _background(image: bytes | str, size: ImageSize, layout: Layout, image_range: ImageRange) -> Image.Image | str:
    """The image as a canvas takes it, or why it cannot be shown."""
    if isinstance(image, str):
        return image
    try:
        decoded = read_image(image, side_min=FINE * layout.tile_side, image_range=image_range)
    except UnreadableImage as error:
        return f"the image {error}"
    return scaled(decoded, size, layout.tile_side)


def _tile(
    background: Image.Image | str,
    size: ImageSize,
    task: Task,
    annotation: Any,
    vocabulary: Any,
    layout: Layout,
    colors: Mapping[str, Color],
) -> Tile:
    if isinstance(background, str):
        width, height = BLANK_SHAPE
        picture = blank((layout.tile_side, layout.tile_side * height // width))
        return Tile(picture=picture, note=f"cannot be shown: {background}")
    canvas = Canvas(background, size, colors)
    legend = DRAWINGS[task](canvas, annotation, vocabulary) if annotation is not None else ()
    note = IMAGE_ALONE if not FORMATS[task].annotated else UNLABELLED if annotation is None else ""
    if annotation is not None and not FORMATS[task].count(annotation):
        note = NEGATIVE
    return Tile(picture=canvas.finished(), legend=legend, note=note)


def _remark(report: Report) -> str:
    if not report.annotations_dropped:
        return ""
    return f"left out: {', '.join(f'{each.annotations} {each.rule}' for each in report.dropped())}"
