"""Small valid inputs of every kind, made in code. Changes to them come closer to what people have than noise does."""

from __future__ import annotations

import functools
import io
import itertools
import json
import struct
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from services.conversion.index import ImageEntry
from services.conversion.raster.rle import encode_rle
from services.conversion.raster.runs import runs_of_mask
from tests.fuzz.case import Case

WIDTH, HEIGHT = 24, 18
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = "categories: [cat, '007', no]\ncolors: {cat: [255, 0, 0], '007': [0, 255, 0], no: [0, 0, 255]}\n"
CLASSES = "task: multiclass classification\ncategories: [cat, '007', no]\nordered: true\n"
BOXES = "task: object detection\ncategories: [cat, '007', no]\n"
QUADS = "task: quadrilateral detection\ncategories: [text]\n"
KEYPOINTS = (
    "task: keypoint detection\nkeypoints: [nose, left eye, right eye]\nsigmas: [0.1, 0.2, 0.2]\n"
    "flip_pairs: [[left eye, right eye]]\n"
)
ANNOTATED = {
    CLASSES: "a.png: cat\nb.png: '007'\nc.png:\nd.png: no\n",
    "task: multilabel classification\nlabels: [red, round]\n": "a.png: [red, round]\nb.png: []\nc.png: null\n",
    "task: metric learning\nidentities: [x, 1.10]\n": "a.png: x\nb.png: 1.10\nc.png: x\n",
    "task: regression\nrange: [-1.5, 1e1]\n": "a.png: 0.25\nb.png: -1.5\nc.png: 10\n",
    "task: scene text recognition\ntokens: abcß\n": "a.png: abß\nb.png: []\nc.png: [a, a, c]\n",
    BOXES: "a.png:\n- {category: cat, bbox: [0, 0, 2.5, 4e0]}\n- category: '007'\n  bbox:\n  - 1\n  - 1.0\n  - 24\n"
    "  - 18\n  crowd: true\nb.png: []\nc.png: ~\nd.png:\n- {bbox: [3, 3, 5, 9], category: no, ignore: true}\n",
    QUADS: "a.png:\n- {category: text, quad: [[1, 1], [9, 1], [9, 5], [1, 5]]}\n"
    "- {category: text, ignore: true, quad: [[0, 0], [4, 4], [4, 0], [0, 4]]}\nb.png: []\n",
    KEYPOINTS: "a.png:\n- {nose: [1, 2], left eye: null}\n- {right eye: [3, 4.5], bbox: [0, 0, 9, 9], area: 7.5}\n"
    "b.png: []\nc.png:\n- {nose: [1, 1], crowd: true, left eye: [2, 2]}\n",
    "task: anomaly detection\n": "a.png: normal\nb.png: anomalous\n",
    "task: autoencoding\n": "a.png: 1\n",
}


def entry(name: str) -> ImageEntry:
    """An image of a made dataset, as the index has it."""
    return ImageEntry(name=name, size_bytes=1, etag="1", width=WIDTH, height=HEIGHT, format="PNG")


def datasets() -> Iterator[Case]:
    """Metadata with annotations in one file, in both languages."""
    for text, labels in ANNOTATED.items():
        yield {"metadata.yaml": f"{text}annotations: labels.yaml\n".encode(), "labels.yaml": labels.encode()}
    metadata = {"task": "object detection", "categories": ["cat", "no"], "annotations": "labels.json"}
    boxes = [{"category": "cat", "bbox": [0, 1, 5.5, 9]}, {"category": "no", "bbox": [1, 1, 2, 2], "crowd": True}]
    yield _json(**{"metadata.json": metadata, "labels.json": {"a.png": boxes, "b.png": [], "c.png": None}})
    metadata = {"task": "keypoint detection", "keypoints": ["a", "b"], "annotations": "labels.json"}
    points = [{"a": [1, 2], "b": None, "bbox": [0, 0, 9, 9], "area": 81}]
    yield _json(**{"metadata.json": metadata, "labels.json": {"a.png": points, "b.png": []}})
    yield {
        "metadata.yaml": (
            b"- name: kind\n  task: multiclass classification\n  categories: [a, b]\n  annotations: labels.yaml\n"
            b"- name: look\n  task: multilabel classification\n  labels: [a]\n  annotations: labels.yaml\n"
            b"  images: s3://bucket/x\n"
        ),
        "labels.yaml": b"a.png: a\nb.png: [a]\n",
    }


def map_datasets() -> Iterator[Case]:
    """Metadata with one map, some with what stands beside it."""
    metadata = {
        "semantic": f"task: semantic segmentation\n{COLORS}annotations: maps/\n",
        "instance": f"task: instance segmentation\n{COLORS}annotations: maps/\n",
        "panoptic": f"task: panoptic segmentation\n{COLORS}things: [cat, '007']\nannotations: maps/\n",
        "depth": "task: depth estimation\nrange: [1, 80]\nannotations: maps/\n",
        "anomaly": "task: anomaly detection\nannotations: maps/\n",
    }
    for content in pngs():
        for task in ("semantic", "depth", "anomaly"):
            yield {"metadata.yaml": metadata[task].encode(), "map.png": content}
    for content in tiffs():
        yield {
            "metadata.yaml": metadata["instance"].encode(),
            "map.tif": content,
            "map.yaml": b"crowd: [1]\nignore: [2]\n",
        }
        yield {
            "metadata.yaml": metadata["panoptic"].encode(),
            "map.tiff": content,
            "map.json": b'{"crowd": [["cat", 1]]}',
        }


@functools.cache
def pngs() -> tuple[bytes, ...]:
    """Every kind of PNG that a map may be."""
    colors, gray = _picture(), _picture()[..., 0]
    palette = Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    images = [Image.fromarray(colors), Image.fromarray(gray), palette, Image.fromarray(gray > 100)]
    images += [Image.fromarray(colors).convert("RGBA"), Image.fromarray(gray).convert("LA")]
    images.append(Image.fromarray(gray.astype(np.uint16) * 257))
    files = [_saved(image, "PNG") for image in images]
    files.append(_saved(palette, "PNG", transparency=0, bits=4))
    files.append(_saved(Image.fromarray(gray), "PNG", transparency=7))
    files.append(imagecodecs.png_encode(colors.astype(np.uint16) * 257))
    return tuple(bytes(file) for file in files)


@functools.cache
def tiffs() -> tuple[bytes, ...]:
    """TIFFs of two pages, of every kind that a map may be."""
    colors, ids = _picture(), (np.indices((HEIGHT, WIDTH)).sum(axis=0) // 9).astype(np.uint8)
    files = []
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"):
        pages = [Image.fromarray(colors), Image.fromarray(ids)]
        files.append(_saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression=compression))
    files.append(_saved(Image.fromarray(colors), "TIFF", save_all=True, append_images=[Image.fromarray(colors)]))
    files.append(_saved(Image.fromarray(ids.astype(np.uint16)), "TIFF", big_tiff=True))
    alone = [Image.fromarray((colors == each).all(axis=2)[..., None] * colors) for each in (RED, GREEN)]
    files.append(_saved(alone[0], "TIFF", save_all=True, append_images=alone[1:], compression="zstd"))
    kinds = itertools.product("<>", (1, 2), (0, 16))
    files += [_tiff(colors, order=order, planar=planar, tile=tile) for order, planar, tile in kinds]
    return tuple(files)


def images() -> Iterator[Case]:
    """Users' images."""
    picture = Image.fromarray(_picture())
    exif = Image.Exif()
    exif[274] = 6
    for name in ("JPEG", "PNG", "TIFF"):
        yield {"image": _saved(picture, name)}
        yield {"image": _saved(picture, name, exif=exif)}
    yield {"image": _saved(picture, "JPEG", progressive=True, comment=b"x" * 300)}
    yield {"image": _saved(picture.convert("CMYK"), "JPEG")}
    for content in (*pngs(), *tiffs()):
        yield {"image": content}


def coco_datasets() -> Iterator[Case]:
    """COCO in its three kinds."""
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    other = {"id": 7, "file_name": "b.png", "width": WIDTH, "height": HEIGHT}
    categories = [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 90, "name": "no"}]
    polygon = {"segmentation": [[1, 1, 9, 1, 9, 7.5, 1, 7], [12, 2, 15, 2, 15, 9]], "bbox": [1, 1, 14, 8]}
    counts = [20, 5, 13, 5, WIDTH * HEIGHT - 43]
    crowd = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}, "bbox": [1, 0, 2, 9], "iscrowd": 1}
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 3, "area": 70.5, "iscrowd": 0} | polygon,
        {"id": 0, "image_id": 1, "category_id": 90, "area": 10} | crowd,
        {"id": 5, "image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [0, 0, 3, 3]},
    ]
    yield (
        _json(
            **{
                "annotations/instances_x.json": {
                    "info": {},
                    "images": [image, other],
                    "annotations": annotations,
                    "categories": categories,
                }
            }
        )
        | _images()
    )
    compressed = {"size": [HEIGHT, WIDTH], "counts": _mask().decode()}
    yield (
        _json(
            **{
                "annotations/instances_x.json": {
                    "images": [image],
                    "annotations": [annotations[0] | {"segmentation": compressed}],
                    "categories": categories,
                }
            }
        )
        | _images()
    )
    person = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2]]}
    points = {
        "keypoints": [1, 2, 2, 3, 4.5, 1, 0, 0, 0],
        "num_keypoints": 2,
        "iscrowd": 0,
        "area": 9,
        "bbox": [0, 0, 9, 9],
    }
    yield (
        _json(
            **{
                "annotations/person_keypoints_x.json": {
                    "images": [image, other],
                    "annotations": [{"id": 4, "image_id": 7, "category_id": 1} | points],
                    "categories": [person],
                }
            }
        )
        | _images()
    )
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[2:9, 3:8] = (5, 0, 0)
    ids[9:, 12:] = (1, 1, 0)
    segments = [
        {"id": 5, "category_id": 3, "iscrowd": 0, "bbox": [3, 2, 5, 7], "area": 35},
        {"id": 257, "category_id": 90, "iscrowd": 1, "bbox": [12, 9, 12, 9], "area": 108},
    ]
    things = [{**categories[0], "isthing": 1, "color": RED}, {**categories[1], "isthing": 0, "color": [0, 9, 9]}]
    yield (
        _json(
            **{
                "annotations/panoptic_x.json": {
                    "images": [image],
                    "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
                    "categories": things,
                }
            }
        )
        | {"annotations/panoptic_x/a.png": _saved(Image.fromarray(ids), "PNG")}
        | _images()
    )


def text_datasets() -> Iterator[Case]:
    """YOLO and Pascal VOC."""
    data = {"data.yaml": b"path: .\ntrain: images\nnames: {0: cat, 1: no}\n"}
    yield data | {"labels/a.txt": b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.2 0.2\n", "labels/b.txt": b""} | _images("images/")
    yield data | {"labels/a.txt": b"0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n1 0 0 1 0 1 1\n"} | _images("images/")
    things = "".join(
        f"<object><name>{name}</name><difficult>{flag}</difficult><truncated>0</truncated><bndbox><xmin>{x}</xmin>"
        f"<ymin>2</ymin><xmax>{x + 5}</xmax><ymax>9</ymax></bndbox></object>"
        for name, flag, x in (("cat", 0, 1), ("no &amp; yes", 1, 7))
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    xml = f'<?xml version="1.0"?>\n<annotation><filename>a.png</filename>{size}{things}</annotation>\n'
    yield {
        "Annotations/a.xml": xml.encode(),
        "Annotations/b.xml": f"<annotation>{size}</annotation>".encode(),
    } | _images("JPEGImages/")


def sources() -> Iterator[Case]:
    """Where a dataset may lie."""
    yield {
        "uri.txt": b"s3://bucket/some/prefix",
        "endpoint.txt": b"http://127.0.0.1:9000",
        "region.txt": b"eu-central-1",
    }
    yield {"uri.txt": b"file:///data/a%20b/", "endpoint.txt": b"", "region.txt": b""}
    yield {"uri.txt": b"s3://a.b-c_d", "endpoint.txt": b"https://[::1]:9000/x/", "region.txt": b""}


def masks() -> Iterator[Case]:
    """Masks as COCO writes them."""
    yield {"counts.txt": _mask(), "polygons.json": b"[[1, 1, 9, 1, 9, 7.5, 1, 7], [12, 2, 15, 2, 15, 9]]"}
    yield {"counts.txt": b"0:2P0", "polygons.json": b"[[0, 0, 24, 0, 24, 18, 0, 18]]"}
    yield {"counts.txt": b"PP1", "polygons.json": b"[20, 5, 13, 5, 389]"}


def _picture() -> Any:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[2:9, 3:14] = RED
    picture[9:17, 3:8] = GREEN
    picture[11:14, 12:24] = BLUE
    return picture


def _mask() -> bytes:
    red = (_picture() == RED).all(axis=2)
    return encode_rle(runs_of_mask(red), height=HEIGHT, width=WIDTH)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _images(folder: str = "") -> Case:
    return {f"{folder}{name}": b"" for name in ("a.png", "b.png")}


def _json(**files: Any) -> Case:
    return {name: json.dumps(content).encode() for name, content in files.items()}


def _tiff(pixels: Any, *, order: str, planar: int, tile: int) -> bytes:
    """A TIFF of one page that Pillow would not write: other byte orders, planes, tiles."""
    planes = [pixels] if planar == 1 else [pixels[..., index : index + 1] for index in range(3)]
    pieces = []
    for plane in planes:
        if not tile:
            pieces.append(plane.tobytes())
            continue
        for y in range(0, HEIGHT, tile):
            for x in range(0, WIDTH, tile):
                piece = np.zeros((tile, tile, plane.shape[2]), np.uint8)
                part = plane[y : y + tile, x : x + tile]
                piece[: part.shape[0], : part.shape[1]] = part
                pieces.append(piece.tobytes())
    tags = {256: [WIDTH], 257: [HEIGHT], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3], 284: [planar]}
    tags |= {322: [tile], 323: [tile], 324: pieces, 325: pieces} if tile else {273: pieces, 278: [HEIGHT], 279: pieces}
    data = b"".join(pieces)
    starts = np.cumsum([0, *map(len, pieces)])[:-1] + 8
    entries, extra = [], b""
    directory = 8 + len(data)
    extra_at = directory + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        values = {273: starts, 324: starts, 279: map(len, pieces), 325: map(len, pieces)}.get(tag, tags[tag])
        packed = b"".join(struct.pack(order + "I", int(value)) for value in values)
        field = packed if len(packed) == 4 else struct.pack(order + "I", extra_at + len(extra))
        extra += b"" if len(packed) == 4 else packed
        entries.append(struct.pack(order + "HHI", tag, 4, len(packed) // 4) + field)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory)
    return start + data + struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4) + extra
