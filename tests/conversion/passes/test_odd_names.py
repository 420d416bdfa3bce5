"""Files whose names are not UTF-8, as old archives unpack them: found as such, and everything else goes on."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2

NAME = b"caf\xe9.png"


@pytest.fixture
def odd(dataset: Any) -> Any:
    """A dataset with one image whose name is not UTF-8."""
    dataset.write()
    folder = os.fsencode(dataset.path / "images")
    os.link(folder + b"/a.png", folder + b"/" + NAME)
    return dataset


def test_an_image_with_such_a_name_is_a_finding_and_the_others_are_converted(run: Any, odd: Any) -> None:
    async def test(service: Any) -> None:
        findings, totals = await service.findings(odd.source)
        assert [(each.rule, each.image) for each in findings] == [("bad_name", "caf\\udce9.png")]
        assert totals.errors == 1
        await service.convert(odd.source, task_pb2.TASK_MULTILABEL_CLASSIFICATION, lenient=True)
        preview = await service.stub.PreviewDataset(service_pb2.PreviewDatasetRequest(source=odd.source))
        assert list(preview.images) == ["a.png", "b.png", "c.png", "d.png"]

    run(test)


def test_a_folder_with_such_a_name_can_be_read(run: Any, dataset: Any, tmp_path: Any) -> None:
    dataset.write()
    folder = os.fsencode(tmp_path) + b"/donn\xe9es"
    dataset.path.rename(os.fsdecode(folder))
    uri = "file://" + "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in folder)

    async def test(service: Any) -> None:
        _, totals = await service.findings(dataset_pb2.DatasetSource(uri=uri))
        assert (totals.errors, totals.images) == (0, 4)

    run(test)
