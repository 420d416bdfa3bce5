"""Reports of conversions in the object store: which ones there are, what is in them.

`{root}/{job_uid}/{epoch}/conversions/{split}-{head}/` holds the contact sheet, if there is one, and, written last,
`report.json`: without it there is no report. They lie below the prefix of their attempt, so that an attempt can tell of
its own conversions alone, and go when the job's checkpoints go. This module reads; it must never write or delete.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.chassis.errors import NotFound, Reason, ResourceExhausted
from services.chassis.objects.access import Credentials, ObjectLimits
from services.chassis.objects.store import ObjectFolder, ObjectNotFound, open_store

CONVERSIONS = "conversions"
REPORT = "report.json"
READ_BYTES_MAX = 8 * 2**20
"""A larger report or contact sheet is not read; it would not fit into an answer."""
SPLITS = ("training", "validation")
_ID = re.compile(rf"([1-9][0-9]{{0,17}})-({'|'.join(SPLITS)})-([a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?)")


@dataclass(frozen=True, kw_only=True)
class ReportKey:
    """Names a report among those of its job. `split` is one of SPLITS."""

    epoch: int
    split: str
    head: str

    @classmethod
    def from_id(cls, report_id: str) -> ReportKey | None:
        """The key in `{epoch}-{split}-{head}`; None where it is none."""
        match = _ID.fullmatch(report_id)
        return cls(epoch=int(match[1]), split=match[2], head=match[3]) if match else None

    @property
    def report_id(self) -> str:
        """`{epoch}-{split}-{head}`."""
        return f"{self.epoch}-{self.split}-{self.head}"

    @property
    def order(self) -> tuple[int, int, str]:
        """The newest attempt first, training before validation, then by head."""
        return -self.epoch, SPLITS.index(self.split), self.head


class ConversionReportStore:
    """The folder of all checkpoints. Raises Unavailable (OBJECT_STORE_UNAVAILABLE) where it does not answer."""

    def __init__(
        self, root_uri: str, *, endpoint_url: str | None = None, credentials: Credentials | None = None
    ) -> None:
        limits = ObjectLimits(read_bytes_max=READ_BYTES_MAX)
        self._root = open_store(root_uri, endpoint_url=endpoint_url, credentials=credentials, limits=limits)

    async def keys(self, job_uid: str, epochs: Iterable[int]) -> list[ReportKey]:
        """The reports of these attempts, in their order."""
        found = await asyncio.gather(*(self._keys_of(job_uid, epoch) for epoch in epochs))
        return sorted((key for keys in found for key in keys), key=lambda key: key.order)

    async def read(self, job_uid: str, key: ReportKey, file: str = REPORT) -> bytes:
        """The report, or its contact sheet. NotFound (CONVERSION_REPORT_NOT_FOUND) where it is not there."""
        folder = self._folder(job_uid, key.epoch).folder(f"{key.split}-{key.head}")
        try:
            return await folder.read(file)
        except (ObjectNotFound, ResourceExhausted) as error:
            message = f"{file} of the report {key.report_id} cannot be read: {error.message}"
            metadata = {"name": key.report_id}
            raise NotFound(Reason.CONVERSION_REPORT_NOT_FOUND, message, metadata) from error

    async def _keys_of(self, job_uid: str, epoch: int) -> list[ReportKey]:
        paths = [found.path async for found in self._folder(job_uid, epoch).list()]
        keys = [ReportKey.from_id(f"{epoch}-{path.removesuffix(f'/{REPORT}')}") for path in paths if _is_report(path)]
        return [key for key in keys if key is not None]

    def _folder(self, job_uid: str, epoch: int) -> ObjectFolder:
        return self._root.folder(f"{job_uid}/{epoch}/{CONVERSIONS}")


def _is_report(path: str) -> bool:
    return path.endswith(f"/{REPORT}")
