"""The readers that are fuzzed. Each takes a case and gives a signature of what it found; only our errors are caught.

Whatever else comes out is a bug. So is an annotation that is not the same after it was written and read again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.chassis.errors import SihlaiError
from services.chassis.image import UnreadableImage, read_image
from services.chassis.objects.store import open_store
from services.conversion.convert.plan import plan, reachable
from services.conversion.conveyor.chunk import Recipe, convert_chunk
from services.conversion.conveyor.sink import NormalisedWriter
from services.conversion.dataset.annotations import raw_records, read_annotation_file
from services.conversion.dataset.metadata import AnnotationSet, read_metadata, read_vocabulary
from services.conversion.dataset.record import RawRecord
from services.conversion.file.document import DocumentError, Kept, read_document
from services.conversion.file.header import HeaderError, MoreNeededError, Pieces, read_header
from services.conversion.finding import Place, Report
from services.conversion.foreign import FOREIGN_FORMATS
from services.conversion.foreign.format import ForeignError, ReadRequest, Unannotated
from services.conversion.formats import FORMATS
from services.conversion.formats.format import MapFile
from services.conversion.index import Index
from services.conversion.raster.error import RasterError
from services.conversion.raster.png import decode_png, encode_png
from services.conversion.raster.polygon import runs_of_polygons
from services.conversion.raster.rle import counts_of_runs, decode_rle, encode_rle, runs_of_counts
from services.conversion.raster.tiff import read_pages
from tests.fuzz import seed
from tests.fuzz.case import Case
from tests.fuzz.memory_files import MemoryFiles, result_of
from tests.fuzz.round_trip import LIMITS, check_export
from tests.fuzz.seed import entry
from tests.fuzz.tool_seed import tool_datasets

IMAGES = ("a.png", "b.png", "c.png", "d.png")
FINDINGS_MAX = 200
WORDS_MAX = 8
OUR_ERRORS = (SihlaiError, DocumentError, HeaderError, MoreNeededError, RasterError, ForeignError, UnreadableImage)
_FOUND = re.compile(r"['\"#\d\[(]")
"""Where a message begins to say what was found: two that are the same up to there are the same."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader. `check` raises what is a bug, and gives words that differ where it took another way."""

    name: str
    seeds: Callable[[], Iterator[Case]]
    check: Callable[[Case], Sequence[str]]


def signature(target: Target, case: Case) -> tuple[str, ...]:
    """What a reader made of a case, without numbers and names."""
    try:
        words = target.check(case)
    except OUR_ERRORS as error:
        words = _words_of(error)
    return tuple(sorted({" ".join(_FOUND.split(word)[0].split()[:WORDS_MAX]) for word in words}))


def check_dataset(case: Case) -> Sequence[str]:
    """Metadata and the annotations of a file, along one path of the graph."""
    name, report = _metadata_name(case), Report(findings_max=FINDINGS_MAX, lenient=True)
    metadata = read_metadata(case[name], name, report)
    words = []
    for chosen in metadata.sets[:3]:
        vocabulary = read_vocabulary(chosen, report)
        if not report.fatal:
            _check_vocabulary(chosen, vocabulary)
        for path in sorted(case.keys() - {name}):
            _check_kept(case[path], path)
            annotations = read_annotation_file(case[path], path, report)
            index = Index(entries=tuple(map(entry, IMAGES)))
            records = list(raw_records(chosen, annotations, index, {"e.png": "bad_name"}, report))
            words += _convert(chosen, vocabulary, records, report, choice=len(case[path]))
    return words + _words(report)


def check_map(case: Case) -> Sequence[str]:
    """Metadata, and one map with what stands beside it."""
    name, report = _metadata_name(case), Report(findings_max=FINDINGS_MAX, lenient=True)
    metadata = read_metadata(case[name], name, report)
    map_name = next(each for each in case if each.startswith("map.") and not each.endswith((".yaml", ".json")))
    beside = next((each for each in case if each in ("map.yaml", "map.json")), "")
    about = read_document(case[beside], beside).value if beside else None
    words = []
    for chosen in metadata.sets[:3]:
        vocabulary = read_vocabulary(chosen, report)
        suffix = map_name[map_name.rindex(".") :]
        if suffix not in FORMATS[chosen.task].map_suffixes:
            continue
        value = MapFile(suffix=suffix, content=case[map_name], about=about, about_file=beside)
        record = RawRecord(
            image=entry("a.png"), annotated=True, value=value, place=Place(file=map_name), path=map_name, suffix=suffix
        )
        words += _convert(chosen, vocabulary, [record], report, choice=len(value.content))
    return words + _words(report)


def check_header(case: Case) -> Sequence[str]:
    """A header, from the whole file and from its ends: they agree where the ends are enough."""
    content = case["image"]
    cut = len(content) // 3
    words = []
    for pieces in (
        Pieces(head=content, tail=b"", size_bytes=len(content)),
        Pieces(head=content[:cut], tail=content[-cut:], size_bytes=len(content)),
    ):
        try:
            header = read_header(pieces)
            assert min(header.width, header.height) > 0
            assert 1 <= header.orientation <= 8
            words.append(str(header.format))
        except HeaderError as error:
            words.append(str(error))
        except MoreNeededError:
            if pieces.whole:  # which must be enough
                raise AssertionError("more than the whole file is wanted") from None
            words.append("more")
    return words


def check_image(case: Case) -> Sequence[str]:
    """A picture. What is claimed too large is refused before; here all are small."""
    content = case["image"]
    try:
        header = read_header(Pieces(head=content, tail=b"", size_bytes=len(content)))
    except HeaderError as error:
        return [str(error)]
    if header.width * header.height > LIMITS.pixels_max:
        return ["too large"]
    return [read_image(content).mode]


def check_png(case: Case) -> Sequence[str]:
    """A PNG, decoded, written and decoded again."""
    pixels = decode_png(case["map.png"], LIMITS)
    again = decode_png(encode_png(pixels), LIMITS)
    assert same(again, pixels), "it is another one after it was written"
    return [f"{pixels.ndim} {pixels.dtype}"]


def check_tiff(case: Case) -> Sequence[str]:
    """Every page of a TIFF."""
    words = []
    for page in read_pages(case["map.tif"], LIMITS):
        black = page.black
        try:
            pixels = page.pixels()
        except RasterError as error:
            words.append(f"{error} {black}")
            continue
        assert pixels.shape[:2] == (page.height, page.width)
        assert not (black and pixels.any()), "black is what has no pixel that is not 0"
        words.append(f"{pixels.ndim} {pixels.dtype} {black}")
    return words


def check_masks(case: Case) -> Sequence[str]:
    """Run lengths and polygons; what is read is written so that it reads the same."""
    words = []
    size: dict[str, int] = {"height": seed.HEIGHT, "width": seed.WIDTH}
    try:
        runs = decode_rle(case["counts.txt"], **size)
        again = decode_rle(encode_rle(runs, **size), **size)
        assert same(again, runs), "it is another one after it was written"
        assert same(runs_of_counts(counts_of_runs(runs, **size), **size), runs), "counts say something else"
        words.append("rle")
    except RasterError as error:
        words.append(str(error))
    try:
        value = json.loads(case["polygons.json"])
    except (ValueError, RecursionError):
        return words
    if isinstance(value, list):
        for read in (runs_of_polygons, runs_of_counts):
            try:
                found = read(value, **size)
                assert 0 <= found.area <= seed.HEIGHT * seed.WIDTH
                words.append(read.__name__)
            except RasterError as error:
                words.append(str(error))
    return words


def check_foreign(case: Case) -> Sequence[str]:
    """A dataset of another tool, read by every format that takes it for one of its own."""
    files = MemoryFiles(case)
    words = []
    for name, foreign in FOREIGN_FORMATS.items():
        report = Report(findings_max=FINDINGS_MAX, lenient=True)
        request = ReadRequest(split="", unannotated=Unannotated.DEFAULT, raster_limits=LIMITS)
        try:
            dataset = result_of(foreign.open(files, request, report))
        except (ForeignError, SihlaiError) as error:
            words += [f"{name} {word}" for word in _words_of(error)]
            continue
        records = []
        for image in dataset.images[:8]:
            found = dataset.annotation(entry(image.name))
            if found is not None:
                value = found.value
                if found.path:
                    value = MapFile(suffix=found.suffix, content=case.get(found.path, b""), about=found.value)
                records.append(
                    RawRecord(image=entry(image.name), annotated=True, value=value, place=found.place, path=found.path)
                )
        recipe = Recipe(
            reader=dataset.codec,
            source_vocabulary=dataset.vocabulary,
            source=dataset.task,
            target=dataset.task,
            writer=NormalisedWriter(FORMATS[dataset.task]),
            lenient=True,
        )
        result = convert_chunk(recipe, records)
        words += [f"{name} {word}" for word in (*_words(report), *_words(result.report))]
    return words


def check_source(case: Case) -> Sequence[str]:
    """A uri with an endpoint and a region: nothing that is let through names another host than the one allowed."""
    uri, endpoint, region = (
        case[name].decode("utf-8", "replace") for name in ("uri.txt", "endpoint.txt", "region.txt")
    )
    folder = open_store(
        uri, endpoint_url=endpoint or None, region=region, anonymous=True, allowed_hosts=["127.0.0.1", "::1"]
    )
    assert folder.uri.startswith(("s3://", "file:///"))
    if folder.uri.startswith("s3") and endpoint:
        assert re.match(r"https?://(127\.0\.0\.1|\[::1\])(:\d+)?(/|$)", endpoint), endpoint
    return [folder.uri[:5]]


def _words_of(error: Exception) -> list[str]:
    """What an error says, which must be something."""
    if not str(error) and not isinstance(error, MoreNeededError):
        raise AssertionError(f"{error!r} says nothing") from error
    return [f"{type(error).__name__} {error}"]


def _metadata_name(case: Case) -> str:
    return next(name for name in case if name.startswith("metadata."))


def _words(report: Report) -> list[str]:
    assert all(each.message and each.rule for each in report.findings), "a finding says what is wrong"
    return [f"{each.rule} {each.message}" for each in report.findings]


def _convert(
    chosen: AnnotationSet, vocabulary: Any, records: Sequence[RawRecord], report: Report, *, choice: int
) -> list[str]:
    """Take the records along one path of the graph, which `choice` chooses."""
    ends = reachable(chosen.task)
    way = plan(chosen.task, ends[choice % len(ends)])
    steps = [(step.start, step.end, options) for step, options in zip(way.steps, way.options, strict=True)]
    recipe = Recipe(
        reader=FORMATS[chosen.task],
        source_vocabulary=vocabulary,
        source=chosen.task,
        target=way.end,
        steps=tuple(steps),
        writer=NormalisedWriter(FORMATS[way.end]),
        lenient=True,
        findings_max=FINDINGS_MAX,
    )
    result = convert_chunk(recipe, records)
    exported: list[str] = []
    if not report.fatal:
        for record in records:
            _check_annotation(chosen, vocabulary, record)
        exported = check_export(chosen, vocabulary, records, choice=choice // len(ends))
    return [str(way.end), *exported, *_words(result.report)]


def _check_kept(content: bytes, path: str) -> None:
    """What stays text until it is wanted reads as it does in the whole file, and what is wrong is the same."""
    kept, whole = (_read(content, path, keep=keep) for keep in (True, False))
    if isinstance(kept, dict):
        kept = {key: each.value() if isinstance(each, Kept) else each for key, each in kept.items()}
    assert kept == whole


def _read(content: bytes, path: str, *, keep: bool) -> Any:
    try:
        return read_document(content, path, keep=keep).value
    except DocumentError as error:
        return error.line, str(error)


def _check_vocabulary(chosen: AnnotationSet, vocabulary: Any) -> None:
    """What is written of a vocabulary reads as the same."""
    task_format = FORMATS[chosen.task]
    written = json.dumps(task_format.write_vocabulary(vocabulary)).encode()
    report = Report(findings_max=FINDINGS_MAX)
    again: Any = read_document(written, "x.json").value
    assert same(task_format.read_vocabulary(again, Place(file="x.json"), report), vocabulary), written
    assert not report.errors, report.findings


def _check_annotation(chosen: AnnotationSet, vocabulary: Any, record: RawRecord) -> None:
    """What is written of an annotation reads as the same, without an error."""
    if record.value is None:
        return
    task_format, size = FORMATS[chosen.task], record.image.size
    first = task_format.read(record.value, size, record.place, vocabulary, Report(findings_max=1, lenient=True))
    if first is None:
        return
    written: Any = task_format.write(first, size, vocabulary)
    if isinstance(written, MapFile):
        about = written.about if written.about is None else _as_document(written.about)
        value: Any = dataclasses.replace(written, about=about)
    else:
        value = _as_document(written)
    report = Report(findings_max=FINDINGS_MAX)
    again = task_format.read(value, size, record.place, vocabulary, report)
    assert not report.errors, report.findings
    assert same(again, first), f"{first} reads as {again} after it was written"


def _as_document(value: Any) -> Any:
    return read_document(json.dumps(value).encode(), "x.json").value


def same(one: Any, other: Any) -> bool:
    """Whether two annotations are equal, number by number where they hold arrays."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _each(name: str, contents: Callable[[], Sequence[bytes]]) -> Callable[[], Iterator[Case]]:
    return lambda: ({name: content} for content in contents())


TARGETS = {
    target.name: target
    for target in (
        Target(name="dataset", seeds=seed.datasets, check=check_dataset),
        Target(name="map", seeds=seed.map_datasets, check=check_map),
        Target(name="header", seeds=seed.images, check=check_header),
        Target(name="image", seeds=seed.images, check=check_image),
        Target(name="png", seeds=_each("map.png", seed.pngs), check=check_png),
        Target(name="tiff", seeds=_each("map.tif", seed.tiffs), check=check_tiff),
        Target(name="masks", seeds=seed.masks, check=check_masks),
        Target(name="coco", seeds=seed.coco_datasets, check=check_foreign),
        Target(name="text", seeds=seed.text_datasets, check=check_foreign),
        Target(name="tools", seeds=tool_datasets, check=check_foreign),
        Target(name="source", seeds=seed.sources, check=check_source),
    )
}
