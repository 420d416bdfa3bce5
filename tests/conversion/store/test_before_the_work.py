"""A destination is tried first: what it cannot take is said before any work, whatever is asked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2

from services.chassis.errors import FailedPrecondition, Reason, SihlaiError
from services.chassis.rpc import error_from_rpc

CALLS = ("import", "export", "convert")
UNWRITABLE = Path("/sys")
"""Nobody makes a folder there, root neither."""


@pytest.fixture
def ask(dataset: Any, tmp_path: Path) -> Any:
    """Makes a call, and gives its error, or None."""
    dataset.write()
    folders = tmp_path / "folders"
    (folders / "cat").mkdir(parents=True)
    for image in Path(dataset.path / "images").iterdir():
        (folders / "cat" / image.name).write_bytes(image.read_bytes())

    async def call(service: Any, kind: str, target: Path) -> SihlaiError | None:
        destination = dataset_pb2.DatasetSource(uri=target.as_uri())
        try:
            if kind == "convert":
                await service.convert(dataset.source, task_pb2.TASK_MULTILABEL_CLASSIFICATION, destination=destination)
                return None
            if kind == "import":
                answers = service.stub.ImportDataset(
                    service_pb2.ImportDatasetRequest(
                        source=dataset_pb2.DatasetSource(uri=folders.as_uri()),
                        format=service_pb2.FOREIGN_FORMAT_IMAGE_FOLDERS,
                        destination=destination,
                        copy_images=True,
                    )
                )
            else:
                answers = service.stub.ExportDataset(
                    service_pb2.ExportDatasetRequest(
                        source=dataset.source,
                        format=service_pb2.FOREIGN_FORMAT_IMAGE_FOLDERS,
                        destination=destination,
                        copy_images=True,
                    )
                )
            async for _ in answers:
                pass
        except grpc.RpcError as error:
            return error_from_rpc(error)
        return None

    return call


@pytest.mark.parametrize("kind", CALLS)
def test_a_place_that_cannot_be_written_is_said_before_anything_is_read(kind: str, run: Any, ask: Any) -> None:
    async def test(service: Any) -> None:
        error = await ask(service, kind, UNWRITABLE / "native")
        assert isinstance(error, FailedPrecondition)
        assert error.message.startswith("file:///sys/native cannot be written: /sys: ")
        assert "None" not in error.message
        assert "\n" not in error.message
        assert not (service.store / "indices").exists(), "no image was looked into for it"

    run(test, allowed_destination_roots=(UNWRITABLE,))


@pytest.mark.parametrize("kind", CALLS)
def test_a_place_that_holds_something_else_is_said_before_anything_is_read(
    kind: str, run: Any, ask: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")

    async def test(service: Any) -> None:
        error = await ask(service, kind, tmp_path / "out")
        assert error is not None
        assert error.reason is Reason.OBJECT_ALREADY_EXISTS
        assert "it holds 'thesis.txt'" in error.message
        assert not (service.store / "indices").exists()

    run(test, allowed_destination_roots=(tmp_path,))


@pytest.mark.parametrize("kind", CALLS)
def test_too_little_room_is_said_before_the_work_with_the_numbers(
    kind: str, run: Any, ask: Any, tmp_path: Path
) -> None:
    async def test(service: Any) -> None:
        error = await ask(service, kind, tmp_path / "out/deep/native")
        assert isinstance(error, FailedPrecondition)
        assert "there is too little room for file://" in error.message
        assert f"1,000,000.00 GB must be free in {tmp_path}, but " in error.message
        assert ("the images take 0.0 MB" in error.message) == (kind != "convert")
        assert int(error.metadata["free_bytes"]) < int(error.metadata["wanted_bytes"])
        assert not (tmp_path / "out").exists()

    run(test, allowed_destination_roots=(tmp_path,), destination_free_bytes_min=10**15)


@pytest.mark.parametrize("kind", CALLS)
def test_what_somebody_else_put_where_a_draft_belongs_is_neither_used_nor_touched(
    kind: str, run: Any, ask: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "closed/dataset").mkdir(parents=True)
    (tmp_path / "closed/dataset/thesis.txt").write_text("years of work")

    async def test(service: Any) -> None:
        assert await ask(service, kind, tmp_path / "first") is None
        digest = service_digest(tmp_path / "first")
        link = tmp_path / f"out/.native.part-{hashlib.sha256(digest.encode()).hexdigest()[:16]}"
        link.symlink_to(tmp_path / "closed")
        assert await ask(service, kind, tmp_path / "out/native") is None
        assert (tmp_path / "closed/dataset/thesis.txt").read_text() == "years of work"
        assert [path.name for path in (tmp_path / "closed").iterdir()] == ["dataset"]
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"native", link.name}

    run(test, allowed_destination_roots=(tmp_path,))


def service_digest(folder: Path) -> str:
    return str(json.loads((folder / "report.json").read_text())["digest"])
