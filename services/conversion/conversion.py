"""One conversion at work: records in, files of the normalised dataset out, in one pass over the data.

The normalised form is the native one in JSON, with the images left where they are: `metadata.json`, `annotations.json`
(every usable image is a key), `index.json`, and, written last, `report.json`. It is written into a draft's folder; who
shows it to the world is the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.chassis.errors import Reason, Unimplemented
from services.conversion.convert.edge import Edge, Step, StepOptions
from services.conversion.dataset import AnnotationSet, Counts, Record, read_vocabulary, records
from services.conversion.finding import Dropped, Finding, Place, Report
from services.conversion.formats import FORMATS
from services.conversion.index import ImageEntry, Index
from services.conversion.plan import Plan
from services.conversion.snapshot import Snapshot
from services.conversion.task import Task

NORMALISED_VERSION = 1
"""Part of the digest: another way to write a dataset is another dataset."""
REPORT_FINDINGS_MAX = 1_000


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """What a conversion gave. `reused`: it was there already."""

    uri: str
    endpoint_url: str
    digest: str
    source_fingerprint: str
    steps: tuple[Edge, ...]
    images_in: int
    labelled_in: int
    labelled_out: int
    annotations_in: int
    annotations_out: int
    dropped: tuple[Dropped, ...]
    reused: bool


def digest_of(snapshot: Snapshot, chosen: AnnotationSet, way: Plan, *, lenient: bool) -> str:
    """The key of the result: whatever could change it is in here."""
    key = {
        "version": NORMALISED_VERSION,
        "fingerprint": snapshot.fingerprint,
        "images": snapshot.images_uri,
        "endpoint_url": snapshot.endpoint_url,
        "annotation_set": chosen.name,
        "start": way.start,
        "steps": [[step.start, step.end, _options_to_json(way, number)] for number, step in enumerate(way.steps)],
        "lenient": lenient,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def check_served(way: Plan) -> None:
    """Raise Unimplemented where this version cannot read the annotations, or cannot take a step."""
    check_read(way.start)
    for step in way.steps:
        if step.step is None:
            raise _not_served(f"conversion {step.name}")
    check_read(way.end)


def check_read(task: Task) -> None:
    """Raise Unimplemented where this version cannot read the task's annotations."""
    if task not in FORMATS:
        raise _not_served(f"annotations for {task}")


class Conversion:
    """A pass over one annotation set. `run` yields the number of images done; then `totals` are complete."""

    def __init__(self, snapshot: Snapshot, chosen: AnnotationSet, way: Plan, report: Report, draft: Path) -> None:
        self._snapshot = snapshot
        self._chosen = chosen
        self._way = way
        self._report = report
        self._draft = draft
        self._source_format = FORMATS[way.start]
        self._target_format = FORMATS[way.end]
        self._labelled_in = 0
        self._dropped_by_steps = 0
        self._in = Counts()
        self._out = Counts()

    def run(self) -> Iterator[int]:
        """Read, convert and write record after record. The steps of the path are taken in one pass."""
        snapshot, report = self._snapshot, self._report
        snapshot.report_images(report)
        vocabulary = read_vocabulary(self._chosen, report)
        annotations = snapshot.contents[self._chosen.name].annotations(self._chosen, report)
        steps: list[Step] = []
        target_vocabulary = vocabulary
        for edge, options in zip(self._way.steps, self._way.options, strict=True):
            assert edge.step is not None, "check_served comes first"
            steps.append(edge.step(target_vocabulary, options))
            target_vocabulary = steps[-1].vocabulary
        found = records(self._chosen, vocabulary, annotations, snapshot.index, snapshot.refused, report)
        with (self._draft / "annotations.json").open("w", encoding="utf-8") as file:
            file.write("{")
            for done, record in enumerate(found, start=1):
                value = self._convert(record, steps)
                file.write("\n" if done == 1 else ",\n")
                file.write(f"{_json(record.image.name)}: {_json(value)}")
                yield done
            file.write("\n}\n")
        self._write("metadata.json", self._metadata_json(target_vocabulary))
        self._write("index.json", index_json(snapshot.index, snapshot.fingerprint))

    def finish(self) -> None:
        """Write the report, with which the dataset is whole."""
        self._write("report.json", self._report_json())

    def _convert(self, record: Record, steps: list[Step]) -> Any:
        self._labelled_in += record.annotated
        self._in.add(record.annotation, self._source_format)
        annotation = record.annotation
        size = record.image.size
        dropped_before = self._report.annotations_dropped
        for step in steps:
            if annotation is None:  # null stays null, whatever the steps
                break
            annotation = step.convert(annotation, size, record.place, self._report)
        self._dropped_by_steps += self._report.annotations_dropped - dropped_before
        self._out.add(annotation, self._target_format)
        return None if annotation is None else self._target_format.write(annotation)

    def _metadata_json(self, vocabulary: Any) -> Mapping[str, Any]:
        return {
            "task": str(self._way.end),
            **self._target_format.write_vocabulary(vocabulary),
            "images": self._snapshot.images_uri,
            "annotations": "annotations.json",
        }

    def _report_json(self) -> Mapping[str, Any]:
        dropped = self._report.dropped()
        dropped_by_reading = self._report.annotations_dropped - self._dropped_by_steps
        return {
            "source_fingerprint": self._snapshot.fingerprint,
            "annotation_set": self._chosen.name,
            "start": str(self._way.start),
            "end": str(self._way.end),
            "steps": [
                {"from": str(step.start), "to": str(step.end), "options": _options_to_json(self._way, number)}
                for number, step in enumerate(self._way.steps)
            ],
            "images_in": self._snapshot.files,
            "labelled_in": self._labelled_in,
            "labelled_out": self._out.labelled + self._out.negative,
            "annotations_in": self._in.annotations + dropped_by_reading,
            "annotations_out": self._out.annotations,
            "dropped": [asdict(each) for each in dropped],
            "errors": self._report.errors,
            "warnings": self._report.warnings,
            "findings": [finding_json(each) for each in self._report.findings[:REPORT_FINDINGS_MAX]],
        }

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        (self._draft / name).write_text(_json(content) + "\n", encoding="utf-8")


def result_from_report(
    report: Mapping[str, Any], way: Plan, *, uri: str, endpoint_url: str, digest: str, reused: bool
) -> ConversionResult:
    """The result that a dataset's report.json tells of."""
    return ConversionResult(
        uri=uri,
        endpoint_url=endpoint_url,
        digest=digest,
        source_fingerprint=report["source_fingerprint"],
        steps=way.steps,
        images_in=report["images_in"],
        labelled_in=report["labelled_in"],
        labelled_out=report["labelled_out"],
        annotations_in=report["annotations_in"],
        annotations_out=report["annotations_out"],
        dropped=tuple(Dropped(**each) for each in report["dropped"]),
        reused=reused,
    )


def index_json(index: Index, fingerprint: str) -> Mapping[str, Any]:
    """The index as a converted dataset holds it: the usable images by name."""
    return {"images": [_entry_json(entry) for entry in index.images], "fingerprint": fingerprint}


def finding_json(finding: Finding) -> Mapping[str, Any]:
    """A finding as a report holds it."""
    place: Place = finding.place
    return {
        "severity": str(finding.severity),
        "rule": finding.rule,
        "message": finding.message,
        "file": place.file,
        "line": place.line,
        "image": place.image,
        "index": finding.index,
        "value": finding.value,
        "action": str(finding.action),
    }


def _entry_json(entry: ImageEntry) -> Mapping[str, Any]:
    return {
        "name": entry.name,
        "bytes": entry.size_bytes,
        "etag": entry.etag,
        "width": entry.width,
        "height": entry.height,
        "orientation": entry.orientation,
    }


def _options_to_json(way: Plan, number: int) -> Mapping[str, Any] | None:
    """The options of a step, with the defaults where none are given: both mean the same result."""
    kind: type[StepOptions] | None = way.steps[number].options
    if kind is None:
        return None
    return asdict(way.options[number] or kind())


_ENCODER = json.JSONEncoder(ensure_ascii=False)
"""One for all: json.dumps would make one for each value."""


def _json(value: Any) -> str:
    return _ENCODER.encode(value)


def _not_served(feature: str) -> Unimplemented:
    message = f"this version of the server does not have {feature} yet"
    return Unimplemented(Reason.NOT_IMPLEMENTED, message, {"feature": feature})
