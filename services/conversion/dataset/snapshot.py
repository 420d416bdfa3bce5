"""A dataset as it was read: metadata, index, the bytes of its annotations, fingerprint. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.conversion.dataset.annotations import Annotations, read_annotation_file, read_annotation_folder
from services.conversion.dataset.map_folder import MapFolder
from services.conversion.dataset.metadata import AnnotationSet, Metadata
from services.conversion.finding import Finding, Report
from services.conversion.index import Index


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


def fingerprint(index: Index, parts: Mapping[str, str]) -> str:
    """sha256 over the sorted index and the content hash (hexadecimal) of each file of metadata and annotations."""
    digest = hashlib.sha256()
    for entry in sorted(index.entries, key=lambda entry: entry.name):
        fields = (entry.name, entry.size_bytes, entry.etag, entry.width, entry.height, entry.orientation)
        digest.update(("image\0" + "\0".join(map(str, fields)) + "\n").encode())
    for path, content_hash in sorted(parts.items()):
        digest.update(f"file\0{path}\0{content_hash}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
