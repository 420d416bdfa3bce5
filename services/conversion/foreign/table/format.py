"""A table (CSV) with an image and its values a row, beside the images or above them.

    image,value            regression: every value is a number; `range` is that of the values
    image,category         multiclass classification
    image,labels           multilabel classification: labels with `;` or `|` between them
    image,cat,dog          multilabel classification: a column of 0 and 1 a label, as annotation hosts write it

An empty value says that nothing is known; with labels it says so only where the column is missing altogether.
"""

# ruff: noqa: D102 — the Protocols say what each method does.

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from services.conversion.conveyor.sink import Fragment
from services.conversion.finding import Place, Report
from services.conversion.foreign.document_sink import DocumentSink
from services.conversion.foreign.format import (
    Files,
    ForeignAnnotation,
    ForeignDataset,
    ForeignError,
    ReadRequest,
    WriteRequest,
    Writing,
)
from services.conversion.foreign.image_names import (
    is_image,
    locate,
    missing_image_message,
    native_images,
    report_passed_over,
)
from services.conversion.foreign.losses import Losses
from services.conversion.foreign.split import in_split
from services.conversion.formats import FORMATS
from services.conversion.formats.interval import Interval
from services.conversion.formats.names import NAMES_MAX, Names, is_name
from services.conversion.formats.number import NumberError, read_number, written
from services.conversion.index import ImageEntry, ImageSize
from services.conversion.task import Task

TABLE, IMAGES = "labels.csv", "images"
IMAGE_COLUMNS = ("image", "filename", "file_name", "file", "path", "image_path", "name", "img", "image_id", "id")
"""What the column of images may be called, in lower case."""
LABELS_COLUMNS = ("labels", "tags")
SEPARATORS = re.compile(r"[;|]")
ROWS_MAX = 10_000_000
TASKS: Sequence[Task] = (Task.REGRESSION, Task.MULTICLASS_CLASSIFICATION, Task.MULTILABEL_CLASSIFICATION)
CATEGORY_COLUMNS = ("category", "class", "label", "target", "category_id", "class_id", "label_id")
"""Columns of one value that is a category, be it a number."""
VALUE_COLUMN = {
    Task.REGRESSION: "value",
    Task.MULTICLASS_CLASSIFICATION: "category",
    Task.MULTILABEL_CLASSIFICATION: "labels",
}
NAMED_MAX = 5
LOST = {
    "range": "bounds of `range` are no image's value: read again, the range is that of the values",
    "unused": "categories have no image, and so no place in the table",
    "order": "categories are in another order in the table, which has them by name",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its columns but the image's, and rows of image, values and line."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], int], ...]


class ImageValues:
    """One value an image."""

    name = "image values"
    tasks = TASKS
    copies_images = False
    looks_for = "a CSV whose first line names a column such as image or filename, and others"

    async def recognises(self, files: Files) -> bool:
        found = _tables(files.paths)
        if not found or not any(map(is_image, files.paths)):
            return False
        head = (await files.head(found[0])).decode("utf-8-sig", "replace").splitlines()
        return bool(head) and _image_column(next(csv.reader(head[:1], delimiter=_delimiter(head[0])), [])) >= 0

    async def open(self, files: Files, request: ReadRequest, report: Report) -> ForeignDataset:
        report_passed_over(files.paths, report)
        paths = in_split(list(files.paths), request.split)
        found = _tables(paths)
        if request.split and not found:
            found = [path for path in _tables(files.paths) if request.split in PurePosixPath(path).stem]
        if len(found) != 1:
            problem = f"there are {', '.join(found[:NAMED_MAX])}: keep one" if found else "there is no CSV file"
            raise ForeignError("missing_file", f"{problem}, such as {TABLE} with image,value", Place(file=TABLE))
        path = found[0]
        content = await files.read(path)
        return await files.in_thread(_open, content, path, paths, request, report)

    def write(self, request: WriteRequest) -> Writing:
        names = FORMATS[request.task].names(request.vocabulary)
        flags = request.task is Task.MULTILABEL_CLASSIFICATION and len(names) > 1  # one column alone may be anything
        columns = names if flags else [VALUE_COLUMN[request.task]]
        sink = TableSink(request, head=_line(["image", *columns]))
        return Writing(codec=ImageValue(task=request.task, columns=tuple(names) if flags else ()), sink=sink)


class TableSink(DocumentSink):
    """Writes the table, and looks at what of the vocabulary it says."""

    def __init__(self, request: WriteRequest, *, head: bytes) -> None:
        super().__init__(
            path=TABLE,
            images=IMAGES,
            head=head,
            between=b"",
            tail=b"",
            item=partial(_written_row),
            losses=Losses(sentences=LOST, file=TABLE),
        )
        self._task = request.task
        self._vocabulary = request.vocabulary
        self._used: set[str] = set()
        self._bounds: list[float] = []

    def add(self, image: ImageEntry, written: Fragment | None) -> None:
        """One row; one without an annotation has none."""
        super().add(image, written)
        if written is None:
            return
        if self._task is Task.REGRESSION:
            number = float(written.pieces[0])
            self._bounds = [min([number, *self._bounds]), max([number, *self._bounds])]
        elif self._task is Task.MULTICLASS_CLASSIFICATION:
            self._used.add(written.pieces[0].decode())

    def end(self) -> None:
        """Account for what the table does not say."""
        super().end()
        if self._task is Task.REGRESSION:
            bounds = [self._vocabulary.low, self._vocabulary.high]
            lost = {"range": sum(bound not in self._bounds for bound in bounds)}
        elif self._task is Task.MULTICLASS_CLASSIFICATION:
            names = [name for name in self._vocabulary.names if name in self._used]
            unused = len(self._vocabulary.names) - len(names)
            lost = {"unused": unused, "order": len(names) if names != sorted(names) else 0}
        else:
            lost = {}
        self.losses.add({what: count for what, count in lost.items() if count})


@dataclass(frozen=True, kw_only=True)
class ImageValue:
    """The value of one image. `columns`: the labels, in order, where each has a column."""

    task: Task
    columns: tuple[str, ...] = ()

    def read(self, value: tuple[str, ...], size: ImageSize, place: Place, vocabulary: Any, report: Report) -> Any:
        if self.task is Task.MULTILABEL_CLASSIFICATION:
            return self._labels(value, place, vocabulary, report)
        text = value[0]
        if self.task is Task.MULTICLASS_CLASSIFICATION:
            if text in vocabulary.known:
                return text
            report.error("undeclared_category", f"{text[:60]!r} can be no category: rename it", place, value=text)
            return None
        try:
            return read_number(text.strip())
        except NumberError as error:
            report.error(error.rule, f"the value must be a number: {error}", place, value=text)
            return None

    def write(self, annotation: Any, size: ImageSize, vocabulary: Any) -> Fragment:
        if self.task is Task.MULTILABEL_CLASSIFICATION and self.columns:
            return Fragment(pieces=tuple(b"1" if name in annotation else b"0" for name in self.columns))
        if self.task is Task.MULTILABEL_CLASSIFICATION:
            return Fragment(pieces=(";".join(annotation).encode(),))
        text = str(written(annotation)) if self.task is Task.REGRESSION else annotation
        return Fragment(pieces=(text.encode(),))

    def _labels(
        self, value: tuple[str, ...], place: Place, vocabulary: Names, report: Report
    ) -> tuple[str, ...] | None:
        if not self.columns:
            found = dict.fromkeys(part.strip() for part in SEPARATORS.split(value[0]) if part.strip())
            return tuple(found)
        bad = [text for text in value if text.strip() not in ("0", "1", "")]
        if bad:
            message = f"{bad[0][:40]!r} stands where 0 or 1 was wanted: mend it"
            report.error("bad_value", message, place, value=bad[0])
            return None
        return tuple(name for name, text in zip(self.columns, value, strict=True) if text.strip() == "1")


def _open(content: bytes, path: str, paths: Sequence[str], request: ReadRequest, report: Report) -> ForeignDataset:
    table = _read_table(content, path, report)
    task, columns = _task_of(table, path, request.task)
    vocabulary = _vocabulary(table, task, columns, path, report)
    files = dict.fromkeys((each for each in paths if is_image(each)), 0)
    # Some tables have names without an ending.
    stems = {PurePosixPath(each).stem: each for each in files}
    spelled = [stems.get(name, name) if PurePosixPath(name).suffix == "" else name for name, _, _ in table.rows]
    found = locate(spelled, files, preferred=f"{path.rpartition('/')[0]}/".lstrip("/"))
    rows: dict[str, tuple[tuple[str, ...], int]] = {}
    for (name, values, line), spelling in zip(table.rows, spelled, strict=True):
        place = Place(file=path, line=line, image=name)
        where = found.get(spelling)
        if where is None:
            report.error("missing_image", missing_image_message(name, paths), place, value=name)
        elif where in rows:
            message = f"the image stands twice, first on line {rows[where][1]}, which counts: keep one of them"
            report.error("repeated_image", message, place, value=name)
        else:
            rows[where] = (values, line)
    if not rows:
        raise ForeignError("missing_image", "none of the images that it lists is among the files", Place(file=path))
    images = native_images(files)
    own = {image.name: rows.get(image.path) for image in images}

    def annotation(image: ImageEntry) -> ForeignAnnotation | None:
        row = own[image.name]
        if row is None or (task is not Task.MULTILABEL_CLASSIFICATION and not row[0][0].strip()):
            return None
        return ForeignAnnotation(value=row[0], place=Place(file=path, line=row[1], image=image.name))

    return ForeignDataset(
        task=task,
        vocabulary=vocabulary,
        codec=ImageValue(task=task, columns=columns),
        images=images,
        annotation=annotation,
    )


def _read_table(content: bytes, path: str, report: Report) -> Table:
    """The table. Raises ForeignError where it is none."""
    place = Place(file=path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForeignError("syntax", "the file is not UTF-8: save it as UTF-8", place) from error
    reader = csv.reader(io.StringIO(text), delimiter=_delimiter(text.partition("\n")[0]), skipinitialspace=True)
    rows = []
    try:
        head = next(reader, [])
        column = _image_column(head)
        if column < 0 or len(head) < 2:
            message = f"the first line must name a column of images ({', '.join(IMAGE_COLUMNS[:4])}) and others"
            raise ForeignError("syntax", message, place, value=",".join(head)[:120])
        for row in reader:
            if not any(row):
                continue
            if len(row) != len(head) or not row[column].strip():
                message = f"the row has {len(row)} values, but the first line names {len(head)}: mend it"
                report.error("syntax", message, Place(file=path, line=reader.line_num), value=",".join(row)[:120])
                continue
            rows.append((row[column].strip(), (*row[:column], *row[column + 1 :]), reader.line_num))
            if len(rows) > ROWS_MAX:
                raise ForeignError("too_many_objects", f"the table has more than {ROWS_MAX} rows", place)
    except csv.Error as error:
        raise ForeignError("syntax", f"the file is no CSV: {error}", Place(file=path, line=reader.line_num)) from error
    names = tuple(name for number, name in enumerate(head) if number != column)
    return Table(columns=names, rows=tuple(rows))


def _task_of(table: Table, path: str, wanted: Task | None) -> tuple[Task, tuple[str, ...]]:
    """The task, and the columns that are labels. Raises ForeignError where the table can be for none, or not for it."""
    place = Place(file=path, line=1)
    if wanted is not None and wanted not in TASKS:
        raise ForeignError("bad_value", f"a table can be for {', '.join(TASKS)}, but not for {wanted}", place)
    flags = all(text.strip() in ("0", "1", "") for _, values, _ in table.rows for text in values)
    if len(table.columns) > 1:
        if not flags or wanted not in (None, Task.MULTILABEL_CLASSIFICATION):
            message = (
                f"the columns {', '.join(table.columns[:NAMED_MAX])} are neither one value nor 0 and 1 for each label: "
                "keep the image and the value"
            )
            raise ForeignError("bad_value", message, place)
        return Task.MULTILABEL_CLASSIFICATION, table.columns
    if wanted is not None:
        return wanted, ()
    texts = [values[0].strip() for _, values, _ in table.rows if values[0].strip()]
    if table.columns[0].lower() in LABELS_COLUMNS or any(SEPARATORS.search(text) for text in texts):
        return Task.MULTILABEL_CLASSIFICATION, ()
    if table.columns[0].lower() in CATEGORY_COLUMNS:
        return Task.MULTICLASS_CLASSIFICATION, ()
    return (Task.REGRESSION if texts and all(map(_is_number, texts)) else Task.MULTICLASS_CLASSIFICATION), ()


def _vocabulary(table: Table, task: Task, columns: tuple[str, ...], path: str, report: Report) -> Any:
    """What the values are of. Raises ForeignError where they are nothing."""
    place = Place(file=path, line=1)
    texts = [values[0] for _, values, _ in table.rows if values[0].strip()]
    if task is Task.REGRESSION:
        numbers = [read_number(text.strip()) for text in texts if _is_number(text)]
        if not numbers:
            raise ForeignError("empty_vocabulary", "no value is a number, so that there is no `range`", place)
        low, high = min(numbers), max(numbers)
        message = "`range` in the metadata is that of the values: widen it by hand where others are possible"
        report.warn("range_of_values", message, place, value=f"{low} to {high}")
        return Interval(low=low, high=high if high > low else low + 1)
    names = columns
    if task is Task.MULTICLASS_CLASSIFICATION:
        names = tuple(sorted({text for text in texts if is_name(text)}))
    elif not columns:
        names = tuple(sorted({part.strip() for text in texts for part in SEPARATORS.split(text) if part.strip()}))
    bad = next((name for name in names if not is_name(name)), None)
    if not 0 < len(names) <= NAMES_MAX or len(set(names)) < len(names) or bad is not None:
        message = f"there must be 1 to {NAMES_MAX} different names of labels: mend the table"
        raise ForeignError("bad_name", message, place, value=bad or "")
    return Names(names=names)


def _is_number(text: str) -> bool:
    try:
        read_number(text.strip())
    except NumberError:
        return False
    return True


def _delimiter(head: str) -> str:
    return ";" if ";" in head and "," not in head else ","


def _image_column(head: Sequence[str]) -> int:
    names = [name.strip().lower() for name in head]
    return next((names.index(name) for name in IMAGE_COLUMNS if name in names), -1)


def _tables(paths: Any) -> list[str]:
    return [path for path in paths if path.lower().endswith(".csv")]


def _line(values: Sequence[str]) -> bytes:
    text = io.StringIO()
    spaced = any(value != value.strip() for value in values)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if spaced else csv.QUOTE_MINIMAL).writerow(values)
    return text.getvalue().encode()


def _written_row(image: ImageEntry, number: int, written: Fragment) -> bytes:
    return _line([image.name, *(piece.decode() for piece in written.pieces)])
