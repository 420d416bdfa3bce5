"""What a program must know to use an exported model: as one JSON text in the file's metadata, under `sihlai`."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from sihlai.conversion.v1 import task_pb2

from runner.export.program import PICTURES, Program
from runner.tasks import task_of
from runner.trainer.backbone import DEVIATION, MEAN
from runner.trainer.checkpoint import software_versions
from runner.trainer.image import canvas_from_data

KEY = "sihlai"
LEFT_OUT = {
    task_pb2.TASK_PANOPTIC_SEGMENTATION: "the fusion of instances and classes into segments",
    task_pb2.TASK_QUADRILATERAL_DETECTION: "doubles: of two polygons of one category that share more than 0.6 of their"
    " union the less likely one",
    task_pb2.TASK_SCENE_TEXT_RECOGNITION: "the collapse of what columns say: equal neighbours are one token, 0 is none,"
    " n is token n - 1",
}
"""What `sihlai predict` does behind the outputs, by task; beside the way from the canvas into the image."""


def metadata_of(program: Program) -> dict[str, Any]:
    """Input, letterbox, normalisation, and of each head its task, vocabulary and outputs."""
    data = program.spec.data
    shapes = program.shapes()
    heads: dict[str, Any] = {}
    for head, vocabulary in zip(program.spec.model.heads, program.vocabularies, strict=True):
        named = {name: shape for name, shape in shapes.items() if name.startswith(f"{head.id}.")}
        kind = head.WhichOneof("parameters")
        parameters = json_format.MessageToDict(getattr(head, kind), preserving_proto_field_name=True) if kind else {}
        heads[head.id] = {
            "task": task_of(head.task).name,
            "vocabulary": vocabulary,
            "parameters": parameters,
            "outputs": named,
        }
        if head.task in LEFT_OUT:
            heads[head.id]["left_out"] = LEFT_OUT[head.task]
    return {
        "input": {
            "name": PICTURES,
            "shape": ["batch", 3, data.height, data.width],
            "values": "float32, RGB from 0 to 1; the model itself normalises",
        },
        "normalisation": {"mean": list(MEAN), "deviation": list(DEVIATION), "inside_the_model": True},
        # Of images of 16 bits: the values that are 0 and 1.
        "image_range": list(canvas_from_data(data).image_range),
        "letterbox": {
            "height": data.height,
            "width": data.width,
            "centered": data.scaling.centered,
            "fill": data.scaling.fill,
            "enlarge": data.scaling.enlarge,
        },
        "heads": heads,
        "versions": software_versions(),
        "specification": json_format.MessageToDict(program.spec.model, preserving_proto_field_name=True),
    }
