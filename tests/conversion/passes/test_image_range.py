"""Images of 16 bits that use a small part of their range."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from sihlai.conversion.v1 import conversion_service_pb2 as service_pb2
from sihlai.conversion.v1 import dataset_pb2, task_pb2


def test_images_of_16_bits_that_are_nearly_black_are_told_with_their_range(run: Any, dataset: Any) -> None:
    dataset.write()
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        values = np.arange(20, dtype=np.uint16).reshape(4, 5) * 200 + number
        Image.fromarray(values).save(dataset.path / "images" / name)

    async def test(service: Any) -> None:
        findings, totals = await service.findings(dataset.source)
        assert [(each.rule, each.value) for each in findings] == [("dark_images", "0 to 3803")]
        assert "`image_range: [0, 3803]`" in findings[0].message
        assert totals.errors == 0
        metadata = dataset.path / "metadata.yaml"
        plain = metadata.read_text()
        metadata.write_text(f"{plain}image_range: [0, 4095]\n")
        assert list((await service.findings(dataset.source))[0]) == []
        result = await service.convert(dataset.source, task_pb2.TASK_AUTOENCODING)
        assert service.converted(result)["metadata"]["image_range"] == [0, 4095]
        images = await service.stub.ListImages(
            service_pb2.ListImagesRequest(source=dataset.source, thumbnail_side=8, page_size=4)
        )
        shown = Image.open(io.BytesIO(images.images[3].picture)).convert("L").getextrema()
        assert shown[1] > 200, "as light as it is by its range"
        for wrong in ("[4095, 0]", "[0, 65536]", "[0, 1, 2]", "[a, b]", "12", "[0.5, 3]"):
            metadata.write_text(f"{plain}image_range: {wrong}\n")
            findings, _ = await service.findings(dataset.source)
            errors = [each for each in findings if each.severity == dataset_pb2.SEVERITY_ERROR]
            assert [each.rule for each in errors] == ["bad_value"]
        metadata.write_text(plain)
        Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(dataset.path / "images/b.png")
        findings, _ = await service.findings(dataset.source)
        assert list(findings) == []

    run(test)
