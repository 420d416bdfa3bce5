"""Formats of other tools, one room a format behind one Protocol; adding one edits this table and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from services.conversion.foreign import image_folders
from services.conversion.foreign.coco import hosted as coco_hosted
from services.conversion.foreign.coco import instances as coco_instances
from services.conversion.foreign.coco import keypoints as coco_keypoints
from services.conversion.foreign.coco import panoptic as coco_panoptic
from services.conversion.foreign.cvat import format as cvat
from services.conversion.foreign.datumaro import format as datumaro
from services.conversion.foreign.depth import format as depth
from services.conversion.foreign.dota import format as dota
from services.conversion.foreign.format import ForeignFormat
from services.conversion.foreign.icdar import format as icdar
from services.conversion.foreign.label_studio import format as label_studio
from services.conversion.foreign.labelme import format as labelme
from services.conversion.foreign.masks import format as mask_folders
from services.conversion.foreign.mvtec import format as mvtec
from services.conversion.foreign.table import format as image_values
from services.conversion.foreign.voc import format as pascal_voc
from services.conversion.foreign.yolo import detect as yolo_detect
from services.conversion.foreign.yolo import obb as yolo_obb
from services.conversion.foreign.yolo import pose as yolo_pose
from services.conversion.foreign.yolo import segment as yolo_segment

FOREIGN_FORMATS: Mapping[str, ForeignFormat] = {
    each.name: each
    for each in (
        coco_instances.CocoInstances(),
        coco_keypoints.CocoKeypoints(),
        coco_panoptic.CocoPanoptic(),
        coco_hosted.CocoHosted(),
        yolo_detect.YoloDetect(),
        yolo_segment.YoloSegment(),
        yolo_obb.YoloObb(),
        yolo_pose.YoloPose(),
        pascal_voc.PascalVoc(),
        mask_folders.MaskFolders(),
        cvat.Cvat(),
        icdar.Icdar(),
        dota.Dota(),
        labelme.Labelme(),
        label_studio.LabelStudio(),
        datumaro.Datumaro(),
        mvtec.MvtecAd(),
        image_values.ImageValues(),
        depth.KITTI,
        depth.NYU,
        image_folders.ImageFolders(),
    )
}
AUTO = "auto"
"""In the place of a format's name: the one that the files can be."""
