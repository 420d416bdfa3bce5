"""Uses an exported model with onnxruntime and Pillow alone: python model-example.py model.onnx photo.jpg

Beside a model stands a copy with the functions of its own tasks. It says what `sihlai predict --json` says, but masks.
"""

import json
import sys
from typing import Any

import numpy
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["sihlai"])
box = about["letterbox"]
whole = numpy.array([box["width"], box["height"]])
photo = Image.open(sys.argv[2])
sides = numpy.array(photo.size[:: -1 if photo.getexif().get(274, 1) > 4 else 1])  # as it is shown
part = min(1, 2 * max(whole) / max(sides))  # of a large JPEG fewer pixels are decoded
photo.draft(None, (max(1, round(photo.width * part)), max(1, round(photo.height * part))))
image = ImageOps.exif_transpose(photo)
if image.mode.startswith("I"):  # 16 bits, which Pillow itself would cut off at 255
    black, white = about["image_range"]
    values = (numpy.asarray(image.convert("I")).clip(black, white) - black) / (white - black)
    image = Image.fromarray((values * 255).round().astype("uint8"))
scale = min(*(whole / sides), 1e9 if box["enlarge"] else 1)
size = numpy.clip((sides * scale).round(), 1, whole).astype(int)
corner = (whole - size) // 2 * box["centered"]
canvas = Image.new("RGB", tuple(whole), (round(box["fill"] * 255),) * 3)
canvas.paste(image.convert("RGB").resize(tuple(size), Image.Resampling.BILINEAR, reducing_gap=1.5), tuple(corner))
pictures = numpy.asarray(canvas, numpy.float32).transpose(2, 0, 1)[None] / 255
outputs = session.run(None, {"pictures": pictures})
found = {each.name: value[0] for each, value in zip(session.get_outputs(), outputs, strict=True)}


def back(points: Any) -> Any:
    """Places on the canvas, (…, 2) as x and y, in the photo."""
    return (points.astype(float) - corner) / size * sides


def shown(values: Any) -> Any:
    """The part of a map of the canvas that shows the photo."""
    return values[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]]


def in_photo(values: Any) -> Any:
    """A map of the canvas in the photo's size; nearest pixels."""
    whole_map = Image.fromarray(shown(values).astype("f" if values.dtype.kind == "f" else "i"))
    return numpy.asarray(whole_map.resize(tuple(sides), Image.Resampling.NEAREST))


def boxes_of(said: Any) -> tuple[Any, Any]:
    """Which objects are there, and all boxes in the photo, cut off by it."""
    boxes = back(said["boxes"].reshape(-1, 2, 2)).clip(0, sides).reshape(-1, 4)
    return (said["scores"] > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1), boxes


def multiclass_classification(said: Any, head: Any) -> Any:
    """The likeliest categories."""
    names = [head["vocabulary"]["categories"][index] for index in said["indices"]]
    probabilities = dict(zip(names, said["probabilities"].tolist(), strict=True))
    return {"category": names[0], "probability": probabilities[names[0]], "probabilities": probabilities}


def multilabel_classification(said: Any, head: Any) -> Any:
    """The labels that are there rather than not."""
    probabilities = dict(zip(head["vocabulary"]["labels"], said["probabilities"].tolist(), strict=True))
    return {"labels": [name for name, value in probabilities.items() if value >= 0.5], "probabilities": probabilities}


def metric_learning(said: Any, head: Any) -> Any:
    """A vector of length 1."""
    return {"embedding": said["embedding"].tolist()}


def view_invariance_learning(said: Any, head: Any) -> Any:
    """A vector."""
    return {"embedding": said["embedding"].tolist()}


def regression(said: Any, head: Any) -> Any:
    """A number in the range."""
    return {"value": said["value"].item()}


def scene_text_recognition(said: Any, head: Any) -> Any:
    """Equal neighbours are one token, 0 is none, and n is token n - 1."""
    pairs = zip([0, *said["said"][:-1]], said["said"], strict=True)
    tokens = [head["vocabulary"]["tokens"][each - 1] for before, each in pairs if each not in (0, before)]
    tokens = tokens[: head["parameters"]["tokens_max"]]
    probability = numpy.prod(said["probability"], dtype=float).item()
    return {"text": "".join(tokens), "tokens": tokens, "probability": probability}


def object_detection(said: Any, head: Any) -> Any:
    """Boxes, the likeliest first."""
    names, (there, boxes) = head["vocabulary"]["categories"], boxes_of(said)
    rows = zip(said["categories"][there], said["scores"][there].tolist(), boxes[there].tolist(), strict=True)
    return {"objects": [{"category": names[index], "score": score, "bbox": bbox} for index, score, bbox in rows]}


def instance_segmentation(said: Any, head: Any) -> Any:
    """Boxes, the likeliest first; `masks` are in 255ths, in cells of the canvas."""
    return object_detection(said, head)


def panoptic_segmentation(said: Any, head: Any) -> Any:
    """Things as boxes, and the share of each category; what `predict` makes one picture of."""
    things = {"vocabulary": {"categories": head["vocabulary"]["things"]}}
    return {**object_detection(said, things), **semantic_segmentation(said, head)}


def quadrilateral_detection(said: Any, head: Any) -> Any:
    """Corners, the likeliest first, without doubles: a polygon over most of a likelier one of its category."""
    found: list[Any] = []
    for index, score, corners in zip(said["categories"], said["scores"].tolist(), said["corners"], strict=True):
        mask = Image.new("1", tuple(8 * whole))
        ImageDraw.Draw(mask).polygon([tuple(point) for point in (8 * corners).tolist()], fill=1)
        area = numpy.asarray(mask)
        doubles = [(area & each).sum() > 0.6 * (area | each).sum() for each, other, _ in found if other == index]
        if score > 0 and not any(doubles):
            name = head["vocabulary"]["categories"][index]
            found.append((area, index, {"category": name, "score": score, "quad": back(corners).tolist()}))
    return {"objects": [each for _, _, each in found]}


def keypoint_detection(said: Any, head: Any) -> Any:
    """Named points, and the boxes around them; null where a point is rather not there."""
    there, boxes = boxes_of(said)
    objects = []
    for row in numpy.flatnonzero(there):
        presence = dict(zip(head["vocabulary"]["keypoints"], said["presences"][row].tolist(), strict=True))
        places = dict(zip(presence, back(said["places"][row]).tolist(), strict=True))
        points = {name: places[name] if value >= 0.5 else None for name, value in presence.items()}
        score = said["scores"][row].item()
        objects.append({**points, "bbox": boxes[row].tolist(), "score": score, "presence": presence})
    return {"objects": objects}


def semantic_segmentation(said: Any, head: Any) -> Any:
    """The share of the photo that each category has; `in_photo(said["classes"])` is the map, n the nth category."""
    counts = numpy.bincount(in_photo(said["classes"]).ravel(), minlength=1 + len(head["vocabulary"]["categories"]))[1:]
    shares = zip(head["vocabulary"]["categories"], (counts / counts.sum()).tolist(), strict=True)
    named = dict(sorted(((name, share) for name, share in shares if share > 0), key=lambda each: -each[1]))
    return {"shares": named, "width": int(sides[0]), "height": int(sides[1])}


def depth_estimation(said: Any, head: Any) -> Any:
    """Distances; `in_photo(said["depth"])` is the map."""
    depth = in_photo(said["depth"])
    numbers = {"nearest": depth.min().item(), "farthest": depth.max().item(), "mean": depth.mean(dtype=float).item()}
    return {**numbers, "width": int(sides[0]), "height": int(sides[1])}


def anomaly_detection(said: Any, head: Any) -> Any:
    """The mean over the hundredth of the photo that looks strangest."""
    values = numpy.sort(shown(said["distance"]), axis=None)
    score = values[-max(1, round(0.01 * values.size)) :].mean(dtype=float).item()
    return {"score": score, "width": int(sides[0]), "height": int(sides[1])}


def autoencoding(said: Any, head: Any) -> Any:
    """How far the picture that was made again is off; `said["again"]` is that picture, on the canvas."""
    error = shown(said["error"]).mean(dtype=float).item()
    psnr = float(-10 * numpy.log10(max(error, 1e-10)))
    return {"mse": error, "psnr": psnr, "width": int(sides[0]), "height": int(sides[1])}


for name, head in about["heads"].items():
    said = {key.removeprefix(f"{name}."): found[key] for key in head["outputs"]}
    answer = globals()[head["task"].replace(" ", "_").replace("-", "_")](said, head)
    print(json.dumps({name: answer}))
