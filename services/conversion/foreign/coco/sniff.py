"""What a COCO document looks like, to tell its kinds apart without reading a gigabyte."""

from __future__ import annotations

from services.conversion.foreign.format import Files

HOSTED = "_annotations.coco.json"
KEYS = (b'"images"', b'"annotations"', b'"categories"')
DOCUMENTS_MAX = 8
"""JSON files that are looked into."""


async def is_coco(files: Files, kind: str) -> bool:
    """Whether there is a document of a kind: one that has COCO's keys, and those of the kind's annotations."""
    found = [path for path in files.paths if path.lower().endswith(".json") and not path.endswith(HOSTED)]
    for path in sorted(found, key=lambda path: (path.count("/"), path))[:DOCUMENTS_MAX]:
        if (await _kind_of(files, path)) == kind:
            return True
    return False


async def _kind_of(files: Files, path: str) -> str:
    """The kind of one document; empty where it is no COCO."""
    head = await files.head(path)
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return ""
    if not any(key in head for key in (*KEYS, b'"info"', b'"licenses"')):
        return ""
    content = await files.read(path)  # the keys may stand anywhere
    if not all(key in content for key in KEYS) or (b'"file_name"' not in content and b'"coco_url"' not in content):
        return ""
    if b'"segments_info"' in content:
        return "panoptic"
    if b'"num_keypoints"' in content or b'"keypoints"' in content:
        return "keypoints"
    return "instances" if b'"category_id"' in content or b'"annotations":[]' in content.replace(b" ", b"") else ""
