"""Reports of an attempt's conversions on their way to the object store, in the background.

A report outlives the converted dataset: what came in, what went out, what was left out and why, and the contact sheet
are copied beside the attempt's checkpoints, create-only, the report last: without it there is nothing. Whatever goes
wrong here must never end or delay a healthy attempt: it is told in the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from google.protobuf import json_format
from sihlai.conversion.v1 import conversion_service_pb2 as conversion
from sihlai.conversion.v1 import dataset_pb2
from sihlai.scheduler.v1 import conversion_report_service_pb2 as wire

from runner.agent.files.download import check_name, open_result
from runner.agent.files.upload import RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX, UploadFailed, write_once
from services.chassis.backoff import Backoff
from services.chassis.errors import ResourceExhausted, RetryableError, SihlaiError
from services.chassis.objects.access import ObjectLimits
from services.chassis.objects.store import ObjectFolder, ObjectNotFound, open_store

CONVERSIONS = "conversions"
REPORT = "report.json"
FINDINGS_MAX = 500
"""Findings that a report keeps; all are counted."""
SHEET_BYTES_MAX = 8 * 2**20
"""A larger contact sheet is not kept: it is sent in one message."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A conversion that is done. `split` is `training` or `validation`."""

    split: str
    head: str
    result: conversion.ConversionResult
    findings: Sequence[dataset_pb2.Finding]
    """What was found after it; the rest stands in the converted dataset."""
    time_unix_us: int


class _Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A finding as a converted dataset's report.json holds it."""

    severity: str
    rule: str
    message: str
    file: str = ""
    line: int = 0
    image: str = ""
    index: int = -1
    value: str = ""
    action: str = ""


class _DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a converted dataset's report.json; the counts are in the conversion's result."""

    findings: list[_Finding] = []


class ConversionReports:
    """An attempt's reports that are not kept yet. `uri` is the folder of the attempt's checkpoints."""

    def __init__(
        self,
        *,
        uri: str,
        attempt: int,
        epoch: int,
        now_unix_us: Callable[[], int],
        randomness: random.Random,
        on_problem: Callable[[str], None],
    ) -> None:
        self._uri = uri.rstrip("/")
        self._attempt = attempt
        self._epoch = epoch
        self._now_unix_us = now_unix_us
        self._random = randomness
        self._on_problem = on_problem
        self._waiting: asyncio.Queue[Converted] = asyncio.Queue()

    def add(
        self,
        split: str,
        head: str,
        result: conversion.ConversionResult,
        findings: Sequence[dataset_pb2.Finding] = (),
    ) -> None:
        """Keep the report of a conversion that is done, with what was found after it."""
        self._waiting.put_nowait(
            Converted(split=split, head=head, result=result, findings=findings, time_unix_us=self._now_unix_us())
        )

    async def run(self) -> None:
        """Keep whatever is added, one after the other, until cancelled."""
        while True:
            converted = await self._waiting.get()
            try:
                await self._keep(converted)
            except (UploadFailed, SihlaiError, OSError) as error:
                self._on_problem(f"the report of the conversion for {converted.head} is not kept: {error}")
            finally:
                self._waiting.task_done()

    async def finished(self) -> None:
        """Wait until nothing is left to keep."""
        await self._waiting.join()

    async def _keep(self, converted: Converted) -> None:
        """Try for as long as an object store is away; it is told once."""
        backoff = Backoff(seconds_first=RETRY_SECONDS_FIRST, seconds_max=RETRY_SECONDS_MAX, randomness=self._random)
        told = False
        while True:
            try:
                await self._copy(converted)
                return
            except (RetryableError, ObjectNotFound) as error:  # a folder or bucket that is missing may come back
                if not told:
                    problem = f"the report of the conversion for {converted.head} waits for the object store"
                    self._on_problem(f"{problem}: {error.message}")
                told = True
                await asyncio.sleep(backoff.next_seconds())

    async def _copy(self, converted: Converted) -> None:
        dataset = open_result(converted.result.dataset, limits=ObjectLimits(read_bytes_max=SHEET_BYTES_MAX))
        target = open_store(f"{self._uri}/{CONVERSIONS}/{converted.split}-{converted.head}")
        findings = [*converted.findings, *await self._findings(dataset, converted.head)]
        report = self._report(converted, findings)
        if name := report.result.contact_sheet:
            sheet = await self._sheet(dataset, name, converted.head)
            if sheet:
                await write_once(target, name, sheet, hashlib.sha256(sheet).hexdigest())
            else:
                report.result.ClearField("contact_sheet")
        content = json_format.MessageToJson(report, preserving_proto_field_name=True, ensure_ascii=False).encode()
        await write_once(target, REPORT, content, hashlib.sha256(content).hexdigest())

    def _report(self, converted: Converted, findings: list[dataset_pb2.Finding]) -> wire.ConversionReport:
        result = converted.result
        report = wire.ConversionReport(
            head=converted.head,
            split=wire.DatasetSplit.Value(f"DATASET_SPLIT_{converted.split.upper()}"),
            attempt=self._attempt,
            epoch=self._epoch,
            result=result,
            findings=findings[:FINDINGS_MAX],
            findings_omitted=max(0, result.errors + result.warnings - len(findings[:FINDINGS_MAX])),
        )
        report.create_time.FromMicroseconds(converted.time_unix_us)
        report.result.dataset.ClearField("credentials")
        return report

    async def _findings(self, dataset: ObjectFolder, head: str) -> list[dataset_pb2.Finding]:
        try:
            content = msgspec.json.decode(await dataset.read(REPORT), type=_DatasetReport)
        except (ObjectNotFound, ResourceExhausted, msgspec.DecodeError) as error:
            self._on_problem(f"the findings of the conversion for {head} are not kept: {error}")
            return []
        return [_finding_to_proto(each) for each in content.findings]

    async def _sheet(self, dataset: ObjectFolder, name: str, head: str) -> bytes:
        """The contact sheet; empty where it cannot be had."""
        try:
            check_name(name)
            return await dataset.read(name)
        except (ObjectNotFound, ResourceExhausted) as error:
            self._on_problem(f"the contact sheet of the conversion for {head} is not kept: {error.message}")
            return b""


def _finding_to_proto(finding: _Finding) -> dataset_pb2.Finding:
    severity = dataset_pb2.Severity.DESCRIPTOR.values_by_name.get(f"SEVERITY_{finding.severity.upper()}")
    action = dataset_pb2.FindingAction.DESCRIPTOR.values_by_name.get(f"FINDING_ACTION_{finding.action.upper()}")
    return dataset_pb2.Finding(
        severity=dataset_pb2.Severity.ValueType(severity.number if severity else 0),
        rule=finding.rule,
        message=finding.message,
        file=finding.file,
        line=finding.line,
        image=finding.image,
        index=finding.index,
        value=finding.value,
        action=dataset_pb2.FindingAction.ValueType(action.number if action else 0),
    )
