"""A call that comes while the same one is being cancelled starts anew, with findings of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2

CATEGORIES = [{"id": 7, "name": "cat"}]
UNLISTED_IMAGES = 400


def test_findings_of_a_cancelled_import_are_not_told_to_the_next_call(trade: Any, files: Any, tmp_path: Path) -> None:
    files.coco("instances", {"a.png": []}, CATEGORIES)
    content = (files.path / "images/a.png").read_bytes()
    for number in range(UNLISTED_IMAGES):
        (files.path / f"images/{number}.png").write_bytes(content)

    async def test(trader: Any) -> None:
        request = service_pb2.ImportDatasetRequest(
            source=dataset_pb2.DatasetSource(uri=files.path.resolve().as_uri()),
            destination=dataset_pb2.DatasetSource(uri=(tmp_path / "native").as_uri()),
            format=service_pb2.FOREIGN_FORMAT_COCO_INSTANCES,
        )
        call = trader.service.stub.ImportDataset(request)
        await anext(aiter(call))
        call.cancel()
        taken = await trader.take("COCO_INSTANCES", files.path, tmp_path / "native")
        assert taken.rules == ["unlisted_image"]

    trade(test)
