"""Reports of conversions on their way to the object store, on real folders."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from sihlai.conversion.v1 import dataset_pb2
from sihlai.conversion.v1.conversion_service_pb2 import ConversionResult, DroppedCount
from sihlai.scheduler.v1 import conversion_report_service_pb2 as wire

from runner.agent.files.conversion_report import FINDINGS_MAX, SHEET_BYTES_MAX, ConversionReports
from tests.runner.agent.recording import until

FINDING = {
    "severity": "error",
    "rule": "no_area",
    "message": "the box has no area: mend it",
    "file": "annotations.yaml",
    "line": 7,
    "image": "a.jpg",
    "index": 2,
    "value": "[1, 1, 1, 1]",
    "action": "dropped",
}


def converted(
    folder: Path, *, findings: Any = (FINDING,), sheet: bytes | None = b"a picture", **result: Any
) -> ConversionResult:
    """A converted dataset's files that matter here, and the result that names it."""
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"findings": findings, "labelled_in": 3}))
    if sheet is not None:
        (folder / "contact_sheet.png").write_bytes(sheet)
    credentials = dataset_pb2.Credentials(azure_sas_token="k")
    source = dataset_pb2.DatasetSource(uri=folder.as_uri(), credentials=credentials)
    result = {"contact_sheet": "contact_sheet.png", "errors": 1, **result}
    dropped = [DroppedCount(rule="no_area", annotations=1, images=1)]
    return ConversionResult(dataset=source, images_in=4, labelled_in=3, labelled_out=2, dropped=dropped, **result)


def keep(root: Path, *results: ConversionResult, when_told: Callable[[], None] | None = None) -> list[str]:
    """Keep these results below `root`/store; what was told. `when_told` is called once something was."""
    problems: list[str] = []

    async def work() -> None:
        reports = ConversionReports(
            uri=(root / "store" / "uid" / "7").as_uri(),
            attempt=2,
            epoch=7,
            now_unix_us=lambda: 1_000_000,
            randomness=random.Random(0),
            on_problem=problems.append,
        )
        running = asyncio.create_task(reports.run())
        for split, result in zip(("training", "validation"), results, strict=False):
            reports.add(split, "cells", result)
        if when_told is not None:
            await until(lambda: bool(problems))
            when_told()
        await reports.finished()
        running.cancel()

    asyncio.run(work())
    return problems


def kept(root: Path, split: str = "training") -> wire.ConversionReport:
    folder = root / "store" / "uid" / "7" / "conversions" / f"{split}-cells"
    return json_format.Parse((folder / "report.json").read_text(), wire.ConversionReport())


def test_a_report_and_its_sheet_outlive_the_converted_dataset(tmp_path: Path) -> None:
    assert keep(tmp_path, converted(tmp_path / "one"), converted(tmp_path / "two", findings=[])) == []
    report = kept(tmp_path)
    assert (report.head, report.split, report.attempt, report.epoch) == ("cells", wire.DATASET_SPLIT_TRAINING, 2, 7)
    assert report.create_time.ToMicroseconds() == 1_000_000
    assert (report.result.images_in, report.result.labelled_out, report.result.dropped[0].rule) == (4, 2, "no_area")
    (finding,) = report.findings
    assert (finding.severity, finding.action) == (dataset_pb2.SEVERITY_ERROR, dataset_pb2.FINDING_ACTION_DROPPED)
    assert (finding.message, finding.line, finding.index) == ("the box has no area: mend it", 7, 2)
    assert (report.findings_omitted, report.name) == (0, "")
    assert not report.result.dataset.HasField("credentials")
    folder = tmp_path / "store" / "uid" / "7" / "conversions"
    assert (folder / "training-cells" / report.result.contact_sheet).read_bytes() == b"a picture"
    assert kept(tmp_path, "validation").findings_omitted == 1


def test_no_more_findings_are_kept_than_the_limit_and_the_rest_is_counted(tmp_path: Path) -> None:
    assert keep(tmp_path, converted(tmp_path / "one", findings=[FINDING] * (FINDINGS_MAX + 5), errors=2_000)) == []
    assert len(kept(tmp_path).findings) == FINDINGS_MAX
    assert kept(tmp_path).findings_omitted == 2_000 - FINDINGS_MAX


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"sheet": None}, "contact sheet"),
        ({"sheet": bytes(SHEET_BYTES_MAX + 1)}, "contact sheet"),
        ({"findings": "none"}, "findings"),
    ],
)
def test_a_part_that_cannot_be_had_is_left_out_and_the_rest_is_kept(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    (problem,) = keep(tmp_path, converted(tmp_path / "one", **changes))
    assert problem.startswith(f"the {what} of the conversion for cells ")
    assert kept(tmp_path).result.labelled_out == 2
    assert bool(kept(tmp_path).result.contact_sheet) == ("sheet" not in changes)


def test_a_sheet_that_would_lead_out_of_its_folder_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    (problem,) = keep(tmp_path, converted(tmp_path / "one", contact_sheet="../escape.png"))
    assert "is not kept" in problem
    assert not (tmp_path / "store").exists()


def test_what_is_there_already_is_never_written_over(tmp_path: Path) -> None:
    first = converted(tmp_path / "one")
    assert keep(tmp_path, first) == []
    assert keep(tmp_path, first) == [], "a repeat, whose first answer was lost, finds its own"
    (problem,) = keep(tmp_path, converted(tmp_path / "other", sheet=b"another"))
    assert "is there already, with another content" in problem
    assert kept(tmp_path).result.dataset.uri.endswith("one")


def test_with_the_store_away_a_report_waits_and_says_so_once(tmp_path: Path) -> None:
    blocker = tmp_path / "store"
    blocker.write_text("a file where the store's folder should be")
    (problem,) = keep(tmp_path, converted(tmp_path / "one"), when_told=blocker.unlink)
    assert "waits for the object store" in problem
    assert kept(tmp_path).result.labelled_out == 2
