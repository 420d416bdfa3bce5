"""Small valid datasets as annotation tools and benchmarks write them, made in code."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import numpy as np

from services.conversion.foreign.label_studio.brush import encode_brush
from services.conversion.raster.png import encode_png
from services.conversion.raster.rle import encode_rle
from services.conversion.raster.runs import runs_of_mask
from tests.fuzz.case import Case
from tests.fuzz.seed import HEIGHT, WIDTH

IMAGES = {"a.png": b"", "b.png": b""}
MASK = np.zeros((HEIGHT, WIDTH), np.bool_)
MASK[2:9, 3:14] = True
POLYGON = [[1, 1], [9, 1], [9, 7.5], [1, 7]]


def tool_datasets() -> Iterator[Case]:
    """One or two of each."""
    yield from _cvat()
    yield from _labelme()
    yield from _label_studio()
    yield from _datumaro()
    yield from _texts()
    yield from _maps()
    yield from _tables()


def _cvat() -> Iterator[Case]:
    shapes = (
        '<box label="cat" occluded="1" xtl="1" ytl="2" xbr="9.5" ybr="8" z_order="0" rotation="30"><attribute name="x">'
        '1</attribute></box><polygon label="cat" points="1,1;9,1;9,7.5;1,7" group_id="2"/>'
        '<mask label="no" rle="0, 2, 1, 3" left="1" top="2" width="3" height="2"/><tag label="day"/>'
        '<polyline label="cat" points="1,1;2,2"/><points label="cat" points="1,1;2,2"/>'
        '<skeleton label="cat"><points label="nose" outside="0" points="3,4"/><points label="ear" outside="1" '
        'points="1,1"/></skeleton>'
    )
    names = enumerate(("cat", "no"))
    labels = "".join(f"<label><name>{name}</name><color>#0a14{n:02x}</color></label>" for n, name in names)
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    for inside in (shapes, '<box label="cat" xtl="1" ytl="2" xbr="9.5" ybr="8"/>', '<tag label="day"/>'):
        xml = (
            f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
            f'<image id="0" name="a.png" {size}>{inside}</image><image id="1" name="b.png" {size}></image>'
            "</annotations>"
        )
        yield {"annotations.xml": xml.encode()} | IMAGES


def _labelme() -> Iterator[Case]:
    mask = base64.b64encode(encode_png(MASK[2:9, 3:14] * np.uint8(255))).decode()
    shapes = [
        {"label": "cat", "points": POLYGON, "group_id": 1, "shape_type": "polygon", "flags": {}},
        {"label": "cat", "points": [[3, 2], [13, 8]], "group_id": None, "shape_type": "mask", "mask": mask},
        {"label": "no", "points": [[9, 8], [2, 1]], "group_id": None, "shape_type": "rectangle"},
        {"label": "nose", "points": [[9, 8]], "group_id": 4, "shape_type": "point"},
        {"label": "no", "points": POLYGON, "group_id": None, "shape_type": "oriented_rectangle"},
    ]
    for some in (shapes, shapes[2:3], shapes[3:4], shapes[4:], []):
        about = {"version": "5.4.1", "flags": {"day": True}, "shapes": some, "imagePath": "a.png", "imageData": None,
                 "imageHeight": HEIGHT, "imageWidth": WIDTH}  # fmt: skip
        yield {"a.json": json.dumps(about).encode(), "labels.txt": b"__ignore__\ncat\nno\n"} | IMAGES


def _label_studio() -> Iterator[Case]:
    values = [
        (
            "rectanglelabels",
            {"x": 10, "y": 20.5, "width": 30, "height": 40, "rotation": 15, "rectanglelabels": ["cat"]},
        ),
        ("polygonlabels", {"points": [[1, 1], [50, 1], [50, 60]], "closed": True, "polygonlabels": ["cat"]}),
        ("brushlabels", {"format": "rle", "rle": encode_brush(MASK), "brushlabels": ["no"]}),
        ("keypointlabels", {"x": 10, "y": 20, "width": 0.5, "keypointlabels": ["nose"]}),
        ("choices", {"choices": ["day"]}),
        ("ellipselabels", {"x": 10, "y": 20, "radiusX": 1, "radiusY": 2, "ellipselabels": ["cat"]}),
    ]
    for some in (values, values[:1], values[3:4], values[4:5]):
        result = [
            {"id": str(n), "type": kind, "value": value, "original_width": WIDTH, "original_height": HEIGHT,
             "image_rotation": 0, "from_name": "a", "to_name": "b", "parentID": "0"}
            for n, (kind, value) in enumerate(some)
        ]  # fmt: skip
        tasks = [
            {"id": 1, "data": {"image": "/data/local-files/?d=x/a.png"}, "annotations": [{"result": result}]},
            {"id": 2, "data": {"image": "/data/upload/3f2a9c1b-b.png"}, "annotations": [{"was_cancelled": True}]},
        ]
        config = b'<View><RectangleLabels><Label value="cat" background="#ff0000"/></RectangleLabels></View>'
        yield {"tasks.json": json.dumps(tasks).encode(), "config.xml": config} | IMAGES


def _datumaro() -> Iterator[Case]:
    rle = encode_rle(runs_of_mask(MASK), height=HEIGHT, width=WIDTH).decode()
    head = {"id": 0, "attributes": {"is_crowd": True, "x": 1}, "group": 1, "label_id": 0, "z_order": 0}
    kinds = [
        {"type": "bbox", "bbox": [1, 2, 8.5, 6]},
        {"type": "polygon", "points": [number for point in POLYGON for number in point]},
        {"type": "mask", "rle": {"counts": rle, "size": [HEIGHT, WIDTH]}},
        {"type": "points", "points": [1, 2, 3, 4], "visibility": [2, 0]},
        {"type": "label"},
        {"type": "rotated_bbox", "points": [9, 9, 4, 2, 30]},
        {"type": "caption", "caption": "x"},
    ]
    categories = {
        "label": {"labels": [{"name": "cat", "parent": ""}, {"name": "no", "parent": ""}], "attributes": []},
        "mask": {"colormap": [{"label_id": 0, "r": 1, "g": 2, "b": 3}]},
        "points": {"items": [{"label_id": 0, "labels": ["nose", "ear"], "joints": [[0, 1]]}]},
    }
    for some in (kinds, kinds[:1], kinds[3:4], kinds[4:5], kinds[5:6]):
        image = {"path": "a.png", "size": [HEIGHT, WIDTH]}
        items = [{"id": "a", "annotations": [{**head, **each} for each in some], "image": image}, {"id": "b"}]
        about = {"dm_format_version": "1.0", "infos": {}, "categories": categories, "items": items}
        images = {f"images/x/{name}": b"" for name in IMAGES}
        yield {"annotations/x.json": json.dumps(about).encode()} | images


def _texts() -> Iterator[Case]:
    data = b"path: .\ntrain: images\nval: images\nnames: {0: cat, 1: no}\n"
    images = {f"images/{name}": b"" for name in IMAGES}
    yield {"data.yaml": data, "labels/a.txt": b"0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n", "labels/b.txt": b""} | images
    pose = data + b"kpt_shape: [2, 3]\nflip_idx: [1, 0]\nkpt_names: {0: [left eye, right eye]}\n"
    yield {"data.yaml": pose, "labels/a.txt": b"0 0.5 0.5 0.5 0.5 0.4 0.5 2 0 0 0\n", "labels/b.txt": b""} | images
    lines = b"1,1,9,1,9,5,1,5,Hello, world\n2,2,6,2,6,5,2,5,###\n"
    yield {"gt_a.txt": b"\xef\xbb\xbf" + lines, "gt_b.txt": b'1 1 9 5 "of"\n'} | IMAGES
    yield {"gt.txt": b'a.png, "Hello"\nb.png, "w\\"x"\n'} | IMAGES
    text = b"imagesource:GoogleEarth\ngsd:0.1\n1 1 9 1 9 5 1 5 small-vehicle 0\n1 1 9.5 1 9 5 1 5 ship 1\n"
    yield {"labelTxt/a.txt": text, "labelTxt/b.txt": b""} | images


def _maps() -> Iterator[Case]:
    numbers = MASK.astype(np.uint8) * 2
    images = {f"images/{name}": b"" for name in IMAGES}
    names = b"road\ntree\nsky\n"
    yield {"classes.txt": names, "masks/a.png": encode_png(numbers), "masks/b.png": encode_png(numbers // 2)} | images
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors[MASK] = (10, 20, 30)
    for name, content in (
        ("labelmap.txt", b"# label:color_rgb:parts:actions\nroad:10,20,30::\nbackground:0,0,0::\n"),
        ("label_colors.txt", b"10 20 30\troad\n0 0 0\tVoid\n"),
        ("class_dict.csv", b"name,r,g,b\nroad,10,20,30\nVoid,0,0,0\n"),
    ):
        yield {name: content, "masks/a.png": encode_png(colors)} | images
    yield {"_classes.csv": b"Pixel Value, Class\n0, background\n2, road\n", "a_mask.png": encode_png(numbers)} | IMAGES
    parts = {"test/good/a.png": b"", "test/crack/b.png": b""}
    yield parts | {"ground_truth/crack/b_mask.png": encode_png(MASK * np.uint8(255))}
    steps = MASK.astype(np.uint16) * 2_560
    yield {
        "rgb/a.png": b"",
        "rgb/b.png": b"",
        "sync_depth/a.png": encode_png(steps),
        "sync_depth/b.png": encode_png(steps),
    }


def _tables() -> Iterator[Case]:
    for text in ("image,value\na.png,1.5\nb.png,-2\n", "filename;class\na.png;cat\nb.png;\n", "id,tags\na,x|y\nb,\n",
                 "filename, cat, dog\na.png, 1, 0\nb.png, 0, 0\n"):  # fmt: skip
        yield {"labels.csv": text.encode()} | IMAGES
