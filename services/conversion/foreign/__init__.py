"""Formats of other tools, one file a format behind one Protocol; adding one edits this table and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from services.conversion.foreign import (
    coco_instances,
    coco_keypoints,
    coco_panoptic,
    image_folders,
    pascal_voc,
    yolo_detect,
    yolo_segment,
)
from services.conversion.foreign.foreign_format import ForeignFormat

FOREIGN_FORMATS: Mapping[str, ForeignFormat] = {
    each.name: each
    for each in (
        coco_instances.CocoInstances(),
        coco_keypoints.CocoKeypoints(),
        coco_panoptic.CocoPanoptic(),
        yolo_detect.YoloDetect(),
        yolo_segment.YoloSegment(),
        pascal_voc.PascalVoc(),
        image_folders.ImageFolders(),
    )
}
