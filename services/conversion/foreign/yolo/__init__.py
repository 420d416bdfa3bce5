"""YOLO: `layout` (data.yaml and folders), `lines`, then a file a kind (`detect`, `segment`), `sink`."""
