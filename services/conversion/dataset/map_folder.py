"""Annotations that are maps: a folder of files with the images' stems, some with a sidecar. Pure.

Their content is not here: the index says what the files are, and a map is read when its image's turn has come.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from services.conversion.dataset.annotations import Annotations, Located, stem_of
from services.conversion.dataset.metadata import repeated_message
from services.conversion.file.document import DocumentError, Value, read_document
from services.conversion.finding import Finding, Place, Report
from services.conversion.index import ImageEntry, Index

WRONG_EXTENSION = "wrong_extension"
"""The rule of a file that is neither a map nor stands beside one, by its name."""


@dataclass(frozen=True, kw_only=True)
class MapFolder:
    """A folder of maps as it was read. `path` ends with a slash; `index` is that of the maps.

    `refused`: files that were not looked into, with the rule that each broke; `findings` tells why.
    """

    path: str
    index: Index
    sidecars: Mapping[str, bytes] = field(default_factory=dict)
    """By file name."""
    refused: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def fingerprint(self) -> str:
        """sha256 over the index, and over what is not in it: the maps themselves are not read for it."""
        digest = hashlib.sha256()
        for entry in sorted(self.index.entries, key=lambda entry: entry.name):
            fields = (entry.name, entry.size_bytes, entry.etag, entry.width, entry.height, entry.orientation)
            digest.update(("map\0" + "\0".join(map(str, fields)) + "\n").encode())
        for name, rule in sorted(self.refused.items()):
            digest.update(f"refused\0{name}\0{rule}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def annotations(self, report: Report) -> Annotations:
        """The map of each stem. What is wrong with a file, or with what stands beside it, leaves nothing known."""
        report.replay(list(self.findings))
        maps: dict[str, ImageEntry] = {}
        refused: dict[str, str] = {}
        for entry in self.index.entries:
            stem = stem_of(entry.name)
            place = self._place(entry.name)
            if entry.rule:
                rule = entry.rule.replace("image", "map")
                report.error(rule, f"{entry.problem}: replace the map, or remove it", place)
                refused[stem] = entry.name
            elif stem in maps:
                message = f"{self.path}{maps[stem].name} has the same stem, so that neither counts: keep one of them"
                report.error("repeated_stem", message, place, value=stem)
                refused[stem] = entry.name
            else:
                maps[stem] = entry
        for name, rule in self.refused.items():
            # What lies beside a sound map and is none, such as a picture of it, takes nothing from it.
            if rule != WRONG_EXTENSION or stem_of(name) not in maps:
                refused.setdefault(stem_of(name), name)
        sidecars = self._read_sidecars(maps, refused, report)
        return Annotations(values=_Maps(self.path, maps, sidecars, refused), by_stem=True)

    def _read_sidecars(
        self, maps: Mapping[str, ImageEntry], refused: dict[str, str], report: Report
    ) -> Mapping[str, _Sidecar]:
        """What the sidecars say; a map whose sidecar is not understood joins the refused."""
        names = sorted(self.sidecars)
        repeated = Counter(stem_of(name) for name in names)
        found: dict[str, _Sidecar] = {}
        for name in names:
            stem, place = stem_of(name), self._place(name)
            if stem not in maps:
                if stem not in refused:
                    message = "there is no map with the same stem: add the map, or remove the file"
                    report.error("sidecar_without_map", message, place, value=name, annotations=0)
                continue
            if repeated[stem] > 1:
                message = f"{repeated[stem]} files stand beside the map {maps[stem].name}: keep one of them"
                report.error("repeated_stem", message, place, value=stem, annotations=stem not in refused)
                refused[stem] = maps[stem].name
                continue
            try:
                document = read_document(self.sidecars[name], name)
            except DocumentError as error:
                report.error("syntax", f"the file {error}", replace(place, line=error.line))
                refused[stem] = maps[stem].name
                continue
            for each in document.repeated:
                at = replace(place, line=each.line)
                report.error(
                    "repeated_key", repeated_message(each), at, value=each.key, annotations=stem not in refused
                )
                refused[stem] = maps[stem].name
            found[stem] = _Sidecar(value=document.value, path=f"{self.path}{name}")
        return found

    def _place(self, name: str) -> Place:
        return Place(file=f"{self.path}{name}", image=stem_of(name))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sidecar:
    value: Value
    path: str


class _Maps(Mapping[str, Located]):
    """The maps by stem, each described when it is asked for: a folder may hold a million."""

    def __init__(
        self,
        path: str,
        maps: Mapping[str, ImageEntry],
        sidecars: Mapping[str, _Sidecar],
        refused: Mapping[str, str],
    ) -> None:
        self._path = path
        self._maps = maps
        self._sidecars = sidecars
        self._refused = refused
        self._stems: Sequence[str] = [*maps, *(stem for stem in refused if stem not in maps)]

    def __getitem__(self, stem: str) -> Located:
        if stem in self._refused:
            path = f"{self._path}{self._refused[stem]}"
            return Located(kept=None, place=Place(file=path, image=stem), refused=True, path=path)
        entry = self._maps[stem]
        path = f"{self._path}{entry.name}"
        sidecar = self._sidecars.get(stem)
        return Located(
            kept=sidecar.value if sidecar is not None else None,
            place=Place(file=path, image=stem),
            path=path,
            suffix=PurePosixPath(entry.name).suffix.lower(),
            size_bytes=entry.size_bytes,
            about_file=sidecar.path if sidecar is not None else "",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._stems)

    def __len__(self) -> int:
        return len(self._stems)
