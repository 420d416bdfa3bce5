"""Where a user's dataset lies, and which images lie there. Nothing is ever written through this module.

A uri comes from a user: nothing outside the configured roots and hosts is opened, and no link and no name leads from a
dataset to somewhere else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.chassis.errors import InvalidArgument, Reason, ResourceExhausted
from services.chassis.objects import Credentials, ObjectFolder, ObjectLimits, open_store
from services.conversion.finding import Finding, Place, Report
from services.conversion.header import FORMAT_BY_SUFFIX

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
            secret = self.credentials
            parts += [secret.access_key_id, secret.secret_access_key, secret.session_token]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image file as it is listed. `version` changes whenever the content may have changed."""

    name: str
    size_bytes: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files in images/, by name. `refused`: files that are not looked into, each with the rule that it broke."""

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
        self, *, allowed_roots: Sequence[Path], allowed_hosts: Sequence[str], images_max: int, file_bytes_max: int
    ) -> None:
        self._roots = tuple(allowed_roots)
        self._hosts = tuple(allowed_hosts)
        self._images_max = images_max
        self._limits = ObjectLimits(read_bytes_max=file_bytes_max)

    def open(self, source: DatasetSource, field_name: str = "source") -> ObjectFolder:
        """The source's folder. Raises InvalidArgument for what is no uri, PermissionDenied outside the bounds."""
        credentials = source.credentials
        if credentials is not None and source.region:
            credentials = replace(credentials, region=source.region)
        try:
            return open_store(
                source.uri,
                endpoint_url=source.endpoint_url or None,
                credentials=credentials,
                allowed_roots=self._roots,
                allowed_hosts=self._hosts,
                limits=self._limits,
            )
        except InvalidArgument as error:
            raise InvalidArgument(
                replace(violation, field=f"{field_name}.{violation.field}") for violation in error.violations
            ) from error

    async def list_images(self, folder: ObjectFolder, root: ObjectFolder) -> Listing:
        """The images that lie directly in `folder`; links must not lead out of `root`. Sub-folders are ignored."""
        report = Report(findings_max=LISTING_FINDINGS_MAX)
        local = local_path(folder.uri)
        refused: dict[str, str] = {}
        if local is not None:
            found = await asyncio.to_thread(_scan, local, local_path(root.uri) or local, report, refused)
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
        files = [file for file in found if _is_image_name(file.name, report, refused)]
        return Listing(
            files=tuple(sorted(files, key=lambda file: file.name)), refused=refused, findings=tuple(report.findings)
        )


def local_path(uri: str) -> Path | None:
    """The folder of this machine that a file:// uri names; None for any other uri."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def leads_outside(folder: ObjectFolder, path: str) -> bool:
    """Whether a file of a local folder is reached through a link to somewhere outside it. Buckets have no links."""
    local = local_path(folder.uri)
    return local is not None and not (local / path).resolve().is_relative_to(local.resolve())


def _scan(folder: Path, root: Path, report: Report, refused: dict[str, str]) -> list[ImageFile]:
    """The regular files in a local folder, hidden ones left out; what leads out of `root` is refused."""
    bounds = (root.resolve(), folder.resolve())
    found: list[ImageFile] = []
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            place = Place(file=f"images/{entry.name}", image=entry.name)
            if entry.is_symlink() and not any(Path(entry.path).resolve().is_relative_to(each) for each in bounds):
                refused[entry.name] = "leads_outside"
                report.error("leads_outside", "it is a link out of the dataset: put the file there", place)
                continue
            try:
                about = entry.stat()
            except OSError as error:
                refused[entry.name] = "unreadable_image"
                report.error("unreadable_image", f"it cannot be opened: {error.strerror}", place)
                continue
            if stat.S_ISDIR(about.st_mode):
                continue
            if not stat.S_ISREG(about.st_mode):
                refused[entry.name] = "unreadable_image"
                report.error("unreadable_image", "it is no regular file", place)
                continue
            # Not part of the fingerprint: it only says when a file must be looked into again.
            version = f"{about.st_ino}-{about.st_mtime_ns}"
            found.append(ImageFile(name=entry.name, size_bytes=about.st_size, version=version))
    return found


def _is_image_name(name: str, report: Report, refused: dict[str, str]) -> bool:
    place = Place(file=f"images/{name}", image=name)
    if not name.isprintable() or "\\" in name:
        refused[name] = "bad_name"
        message = "the file's name holds a control character or a backslash: rename it"
        report.error("bad_name", message, place, value=name)
        return False
    suffix = Path(name).suffix.lower()
    if suffix not in FORMAT_BY_SUFFIX:
        wanted = ", ".join(FORMAT_BY_SUFFIX)
        message = f"the file's name ends in {suffix or 'nothing'!r}, so it is passed over: images end in {wanted}"
        report.warn("wrong_extension", message, place, value=name)
        return False
    return True
