"""Where a user's dataset lies, and which images lie there. Nothing is ever written through this module.

A uri comes from a user: nothing outside the configured roots and hosts is opened, and no link and no name leads from a
dataset to somewhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import stat
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from services.chassis.errors import FailedPrecondition, InvalidArgument, Reason, ResourceExhausted
from services.chassis.objects.access import Credentials, ObjectLimits
from services.chassis.objects.bucket import Buckets
from services.chassis.objects.local import listed
from services.chassis.objects.store import ObjectFolder, ObjectNotFound, open_store
from services.chassis.objects.uri import local_path, uri_parts
from services.conversion.file.document import SUFFIXES as DOCUMENT_SUFFIXES
from services.conversion.file.header import FORMAT_BY_SUFFIX
from services.conversion.finding import Finding, Place, Report
from services.conversion.source.entry import EntryError, look_at

LISTING_FINDINGS_MAX = 1_000_000
"""Of one listing, whatever is sent of it later; below it nothing is lost between a listing and its replay."""


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A folder or a prefix of a bucket that holds a dataset in the native format."""

    uri: str
    endpoint_url: str = ""
    region: str = ""
    credentials: Credentials | None = None

    def key(self) -> str:
        """Equal for sources that read the same with the same rights; tells nothing of the credentials."""
        parts = [self.uri.rstrip("/"), self.endpoint_url, self.region]
        if self.credentials is not None:
            parts += [type(self.credentials).__name__, *astuple(self.credentials)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image file as it is listed. `version` changes whenever the content may have changed."""

    name: str
    size_bytes: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files in images/, or in a folder of maps, by name.

    `refused`: files that are not looked into, each with the rule that it broke.
    """

    files: tuple[ImageFile, ...]
    refused: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def key(self) -> str:
        """Changes whenever a file may have changed."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.size_bytes}\0{file.version}\n".encode())
        return digest.hexdigest()


class Access:
    """Opens users' sources, within the bounds of the configuration."""

    def __init__(
        self,
        *,
        allowed_roots: Sequence[Path],
        closed_roots: Sequence[Path] = (),
        allowed_hosts: Sequence[str],
        own_credentials_uris: Sequence[str],
        images_max: int,
        limits: ObjectLimits,
        buckets_max: int,
    ) -> None:
        self._roots = tuple(allowed_roots)
        self._closed = tuple(closed_roots)
        self._hosts = tuple(allowed_hosts)
        self._own = tuple(map(uri_parts, own_credentials_uris))
        self._images_max = images_max
        self._limits = limits
        self._buckets = Buckets(open_max=buckets_max)

    def within(self, roots: Sequence[Path]) -> Access:
        """The same for writing: with other roots, and never with the service's own credentials."""
        other = copy(self)
        other._roots = tuple(roots)
        other._closed = ()  # closed to readers; what is closed to writers stays so however deep a root lies
        other._own = ()
        return other

    def open(self, source: DatasetSource, field_name: str = "source") -> ObjectFolder:
        """The source's folder. Raises InvalidArgument for what is no uri, PermissionDenied outside the bounds.

        A bucket without credentials is read as a public one: a caller must not get what this service alone may read.
        """
        try:
            found = uri_parts(source.uri)
            own = any(found[: len(each)] == each for each in self._own)
            return open_store(
                source.uri,
                endpoint_url=source.endpoint_url or None,
                credentials=source.credentials,
                region=source.region,
                anonymous=source.credentials is None and not own,
                allowed_roots=self._roots,
                closed_roots=self._closed,
                allowed_hosts=self._hosts,
                limits=self._limits,
                buckets=self._buckets,
            )
        except InvalidArgument as error:
            raise InvalidArgument(
                replace(violation, field=f"{field_name}.{violation.field}") for violation in error.violations
            ) from error

    async def list_images(self, folder: ObjectFolder) -> Listing:
        """The images that lie directly in a dataset's `folder`. Sub-folders are ignored."""
        return await self._list(folder, _Rules(folder="images/", unreadable="unreadable_image"), _is_image_name)

    async def list_maps(self, folder: ObjectFolder, path: str, suffixes: Sequence[str]) -> Listing:
        """The maps, and what stands beside them, that lie directly in `folder`, which is `path` in the dataset."""

        def accepts(name: str, report: Report, refused: dict[str, str]) -> bool:
            suffix = Path(name).suffix.lower()
            if suffix in suffixes or suffix in DOCUMENT_SUFFIXES:
                return True
            message = f"it ends in {suffix or 'nothing'!r}, but maps end in {', '.join(suffixes)}"
            report.error("wrong_extension", message, Place(file=f"{path}{name}", image=Path(name).stem), annotations=0)
            refused[name] = "wrong_extension"
            return False

        return await self._list(folder, _Rules(folder=path, unreadable="unreadable_map"), accepts)

    async def _list(
        self,
        folder: ObjectFolder,
        rules: _Rules,
        accepts: Callable[[str, Report, dict[str, str]], bool],
    ) -> Listing:
        report = Report(findings_max=LISTING_FINDINGS_MAX, shared=False)
        local = local_path(folder.uri)
        refused: dict[str, str] = {}
        if local is not None:
            found = await asyncio.to_thread(_scan, folder, rules, report, refused)
        else:
            found = [
                ImageFile(name=each.path, size_bytes=each.size_bytes, version=each.etag)
                async for each in folder.list()
                if "/" not in each.path and not each.path.startswith(".")
            ]
        if len(found) > self._images_max:
            raise ResourceExhausted(
                Reason.LIMIT_REACHED,
                f"{folder.uri} holds {len(found)} files, but at most {self._images_max} are read",
                {"what": "images_max", "limit": str(self._images_max), "uri": folder.uri},
            )
        # A hundred thousand names take longer than anybody else may be kept waiting.
        return await asyncio.to_thread(_sort_out, found, rules, accepts, report, refused)


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """How findings about the files of a folder speak. `folder` is its path in the dataset, with a slash."""

    folder: str
    unreadable: str

    def place(self, name: str) -> Place:
        image = name if self.folder == "images/" else Path(name).stem
        return Place(file=f"{self.folder}{name}", image=image)


def dataset_changed(uri: str, found: str) -> FailedPrecondition:
    """The error for a file that is not what it was when the dataset was listed."""
    message = f"{uri} {found} while the dataset was read: repeat the call once nobody changes the dataset"
    return FailedPrecondition(Reason.DATASET_CHANGED, message, {"uri": uri})


@contextlib.contextmanager
def still_there() -> Iterator[None]:
    """Around the reading of files that were there a moment ago. Raises FailedPrecondition (DATASET_CHANGED)."""
    try:
        yield
    except ObjectNotFound as error:
        raise dataset_changed(error.metadata["uri"], "was deleted") from error


def leads_outside(folder: ObjectFolder, path: str) -> bool:
    """Whether a file of a local folder is reached through a link to somewhere outside it. Buckets have no links."""
    local = local_path(folder.uri)
    return local is not None and not (local / path).resolve().is_relative_to(local.resolve())


def _scan(folder: ObjectFolder, rules: _Rules, report: Report, refused: dict[str, str]) -> list[ImageFile]:
    """The regular files in a local folder, hidden ones left out; links that lead out of the dataset are refused."""
    found: list[ImageFile] = []
    with contextlib.suppress(ObjectNotFound, NotADirectoryError), folder.opened() as here, listed(here) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            place = rules.place(entry.name)
            try:
                about = look_at(folder, entry.name, entry)
            except EntryError as error:
                rule = refused[entry.name] = "leads_outside" if error.outside else rules.unreadable
                link_out = "it is a link out of the dataset: put the file there"
                report.error(rule, link_out if error.outside else f"it cannot be opened: {error}", place)
                continue
            if stat.S_ISDIR(about.st_mode):
                continue
            if not stat.S_ISREG(about.st_mode):
                refused[entry.name] = rules.unreadable
                report.error(rules.unreadable, "it is no regular file", place)
                continue
            # Not part of the fingerprint: it only says when a file must be looked into again.
            version = f"{about.st_ino}-{about.st_mtime_ns}"
            found.append(ImageFile(name=entry.name, size_bytes=about.st_size, version=version))
    return found


def _sort_out(
    found: Sequence[ImageFile],
    rules: _Rules,
    accepts: Callable[[str, Report, dict[str, str]], bool],
    report: Report,
    refused: dict[str, str],
) -> Listing:
    """The listing of what was found in a folder."""
    files = [
        file
        for file in found
        if _is_file_name(file.name, rules, report, refused) and accepts(file.name, report, refused)
    ]
    return Listing(
        files=tuple(sorted(files, key=lambda file: file.name)), refused=refused, findings=tuple(report.findings)
    )


def _is_file_name(name: str, rules: _Rules, report: Report, refused: dict[str, str]) -> bool:
    if name.isprintable() and "\\" not in name:
        return True
    refused[name] = "bad_name"
    message = "the file's name holds a control character or a backslash: rename it"
    report.error("bad_name", message, rules.place(name), value=name)
    return False


def _is_image_name(name: str, report: Report, refused: dict[str, str]) -> bool:
    suffix = Path(name).suffix.lower()
    if suffix in FORMAT_BY_SUFFIX:
        return True
    wanted = ", ".join(FORMAT_BY_SUFFIX)
    message = f"the file's name ends in {suffix or 'nothing'!r}, so it is passed over: images end in {wanted}"
    report.warn("wrong_extension", message, Place(file=f"images/{name}", image=name), value=name)
    return False
