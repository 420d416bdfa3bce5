"""One conversion: its key, its pass over the records, its report.

The result is the native form in JSON, which `sink` writes; `report.json` is written last, and with it the dataset is
whole. Everything is written into a draft's folder; who shows it to the world is the store, or the destination.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.chassis.image import FULL_RANGE
from services.conversion.convert.edge import Edge, StepOptions
from services.conversion.convert.plan import Plan
from services.conversion.conveyor.chunk import Recipe
from services.conversion.conveyor.conveyor import Conveyor, Freight, Load, Totals
from services.conversion.conveyor.journal import Journal
from services.conversion.conveyor.sink import NormalisedSink, NormalisedWriter, Sink, write_json
from services.conversion.dataset.annotations import Annotations, raw_records
from services.conversion.dataset.category_ids import CATEGORY_IDS, read_category_ids
from services.conversion.dataset.metadata import AnnotationSet, read_vocabulary
from services.conversion.dataset.snapshot import Snapshot
from services.conversion.finding import Action, Dropped, Finding, Place, Report, Severity
from services.conversion.formats import FORMATS
from services.conversion.formats.format import Codec
from services.conversion.picture.exhibit import Selection, choose_entries, select
from services.conversion.store.store import REPORT

IMAGE_RANGE = "image_range"
"""The metadata's key, where 16-bit images are shown by a part of their range."""
NORMALISED_VERSION = 6
"""Part of the digest: another way to write a dataset is another dataset."""
REPORT_FINDINGS_MAX = 1_000
RESULT_FINDINGS_MAX = 50
"""Of a report's, those that a result tells."""


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
    errors: int = 0
    images_with_errors: int = 0
    warnings: int = 0
    contact_sheet: str = ""
    """A file of the dataset; empty where there is none."""
    findings: tuple[Finding, ...] = ()
    """The first ones."""
    foreign_format: str = ""
    """Of an import: what was read."""
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


class Conversion:
    """A pass over one annotation set: `prepare` in a thread, then `run`, then, if nothing refuses it, `finish`."""

    def __init__(self, snapshot: Snapshot, chosen: AnnotationSet, way: Plan, report: Report) -> None:
        self._snapshot = snapshot
        self._chosen = chosen
        self._way = way
        self._report = report
        self._totals = Totals()
        self._annotations = Annotations(values={}, by_stem=False)

    def prepare(self, load: Load | None = None) -> Freight:
        """Read vocabulary and annotations. `load`: reads the maps of the annotation set."""
        snapshot, report, way = self._snapshot, self._report, self._way
        snapshot.report_images(report)
        recipe = recipe_of(self._chosen, way, report, NormalisedWriter(FORMATS[way.end]))
        self._annotations = snapshot.contents[self._chosen.name].annotations(self._chosen, report)
        return freight_of(snapshot, self._chosen, self._annotations, recipe, report, load)

    async def run(
        self,
        freight: Freight,
        conveyor: Conveyor,
        sink: Sink,
        tell: Callable[[Totals], None],
        journal: Journal | None = None,
    ) -> None:
        """Read, convert and write record after record. The sink has begun."""
        self._totals = await conveyor.carry(freight, self._report, tell, sink=sink, journal=journal)

    def sink(self) -> NormalisedSink:
        """What writes the result in the native form."""
        snapshot = self._snapshot
        ids, shown = read_category_ids(self._chosen, self._report), self._snapshot.metadata.image_range
        return NormalisedSink(
            FORMATS[self._way.end],
            images_uri=snapshot.images_uri,
            index=snapshot.index,
            fingerprint=snapshot.fingerprint,
            metadata={
                **({CATEGORY_IDS: ids} if ids else {}),
                **({IMAGE_RANGE: list(shown)} if shown != FULL_RANGE else {}),
            },
        )

    def selection(self, recipe: Recipe, count: int) -> Selection | None:
        """Some records for a contact sheet, preferably such as lost something. Slow: looks at every image's name.

        None where the task has no annotations to show.
        """
        if not FORMATS[self._way.start].annotated:
            return None
        lost = set[str]().union(*self._report.images_by_rule.values())
        entries = choose_entries(self._snapshot.index, self._annotations, count, lost)
        if not entries:
            return None
        shown = self._snapshot.metadata.image_range
        return select(self._chosen, self._annotations, entries, recipe, self._snapshot.files, shown)

    def finish(self, folder: Path, digest: str, contact_sheet: str = "") -> None:
        """Write the report, with which the dataset is whole. `contact_sheet`: a file of it, if there is one."""
        about = report_json(
            self._report,
            self._totals,
            self._way,
            source_fingerprint=self._snapshot.fingerprint,
            annotation_set=self._chosen.name,
            images=self._snapshot.files,
            contact_sheet=contact_sheet,
        )
        write_json(folder / REPORT, {"digest": digest, **about})


def report_json(
    report: Report,
    totals: Totals,
    way: Plan,
    *,
    source_fingerprint: str,
    annotation_set: str,
    images: int,
    contact_sheet: str = "",
) -> Mapping[str, Any]:
    """The report.json of a dataset but for its digest: what came in, what went out, what was dropped and why."""
    dropped_by_reading = report.annotations_dropped - totals.dropped_by_steps
    return {
        "source_fingerprint": source_fingerprint,
        "annotation_set": annotation_set,
        "start": str(way.start),
        "end": str(way.end),
        "steps": [
            {"from": str(step.start), "to": str(step.end), "options": _options_to_json(way, number)}
            for number, step in enumerate(way.steps)
        ],
        "images_in": images,
        "labelled_in": totals.labelled_in,
        "labelled_out": totals.counts_out.labelled + totals.counts_out.negative,
        "annotations_in": totals.counts_in.annotations + dropped_by_reading,
        "annotations_out": totals.counts_out.annotations,
        "dropped": [asdict(each) for each in report.dropped()],
        "errors": report.errors,
        "images_with_errors": len(report.images_with_errors),
        "warnings": report.warnings,
        "findings": [finding_json(each) for each in report.findings[:REPORT_FINDINGS_MAX]],
        "contact_sheet": contact_sheet,
    }


def recipe_of(chosen: AnnotationSet, way: Plan, report: Report, writer: Codec[Any, Any] | None = None) -> Recipe:
    """What turns the records of an annotation set into those of the path's end. Reads the vocabulary.

    What its steps remark is in the report, once: chunks would say it again and again.
    """
    recipe = Recipe(
        reader=FORMATS[way.start],
        source_vocabulary=read_vocabulary(chosen, report),
        source=way.start,
        target=way.end,
        steps=tuple((edge.start, edge.end, each) for edge, each in zip(way.steps, way.options, strict=True)),
        writer=writer,
        lenient=report.lenient,
        findings_max=report.findings_max,
    )
    for step in recipe.make_steps():
        for remark in step.remarks:
            report.warn(remark.rule, remark.message, chosen.place)
    return recipe


def freight_of(
    snapshot: Snapshot,
    chosen: AnnotationSet,
    annotations: Annotations,
    recipe: Recipe,
    report: Report,
    load: Load | None,
) -> Freight:
    """The records of an annotation set under a recipe."""
    reading = Report(findings_max=report.findings_max, lenient=report.lenient)
    reads_maps = snapshot.contents[chosen.name].maps is not None
    return Freight(
        recipe=recipe,
        records=raw_records(chosen, annotations, snapshot.index, snapshot.refused, reading),
        reading=reading,
        maps=reads_maps or any(FORMATS[end].map_suffixes and not FORMATS[end].optional for _, end, _ in recipe.steps),
        load=load if reads_maps else None,
    )


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
        errors=report["errors"],
        images_with_errors=report.get("images_with_errors", 0),
        warnings=report["warnings"],
        contact_sheet=report["contact_sheet"],
        findings=tuple(map(finding_from_json, report["findings"][:RESULT_FINDINGS_MAX])),
        reused=reused,
    )


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


def finding_from_json(about: Mapping[str, Any]) -> Finding:
    """The pair of `finding_json`."""
    return Finding(
        severity=Severity(about["severity"]),
        rule=about["rule"],
        message=about["message"],
        place=Place(file=about["file"], line=about["line"], image=about["image"]),
        index=about["index"],
        value=about["value"],
        action=Action(about["action"]),
    )


def _options_to_json(way: Plan, number: int) -> Mapping[str, Any] | None:
    """The options of a step, with the defaults where none are given: both mean the same result."""
    kind: type[StepOptions] | None = way.steps[number].options
    if kind is None:
        return None
    return asdict(way.options[number] or kind())
