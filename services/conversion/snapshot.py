"""A dataset as it was read: metadata, index, the bytes of its annotations, fingerprint. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.conversion.dataset import (
    Annotations,
    AnnotationSet,
    Metadata,
    read_annotation_file,
    read_annotation_folder,
)
from services.conversion.finding import Finding, Report
from services.conversion.index import Index
from services.conversion.map_folder import MapFolder


@dataclass(frozen=True, kw_only=True)
class SetContents:
    """The annotation files of one set, as bytes; or, for a set that is not read, their hashes alone."""

    parts: Mapping[str, str] = field(default_factory=dict)
    file: bytes | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    outside: Sequence[str] = ()
    """Links in a folder of files that lead out of the dataset: they are not read."""
    maps: MapFolder | None = None
    """Where the annotations are maps."""
    problem: tuple[str, str] | None = None
    """(rule, message) where the files cannot be read."""

    def annotations(self, chosen: AnnotationSet, report: Report) -> Annotations:
        """The values in the files. Slow for large ones: call it in a thread."""
        if self.problem is not None:
            rule, message = self.problem
            report.fail(rule, message, chosen.place, value=chosen.annotations)
        if self.file is not None:
            return read_annotation_file(self.file, chosen.annotations, report)
        if self.maps is not None:
            return self.maps.annotations(report)
        return read_annotation_folder(self.files, self.outside, report)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A dataset with everything that is needed to look at each of its records.

    `refused`: files of images/ that were not looked into, with the rule that each broke; `findings` tells why.
    """

    uri: str
    endpoint_url: str
    images_uri: str
    metadata: Metadata
    index: Index
    refused: Mapping[str, str]
    findings: tuple[Finding, ...]
    contents: Mapping[str, SetContents]
    """By the annotation set's name."""
    fingerprint: str

    @property
    def files(self) -> int:
        """Image files in images/, the unusable ones included."""
        return len(self.index.entries) + len(self.refused)

    def report_images(self, report: Report) -> None:
        """What is wrong with the image files."""
        report.replay(list(self.findings))
        self.index.report(report)
