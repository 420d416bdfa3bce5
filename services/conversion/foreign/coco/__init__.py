"""COCO: `document` (the JSON), `annotation`, then a file a kind (`instances`, `keypoints`, `panoptic`), `sink`."""
