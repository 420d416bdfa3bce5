"""Links to nothing, in a circle and out of the dataset, and names that are none: each is found as what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def test_links_and_names_are_found_as_what_they_are(trade: Any, files: Any, tmp_path: Path) -> None:
    files.image("cat/a.png").image("dog/b.png").image("dog/c.png")
    (files.path / "dog/gone.png").symlink_to(tmp_path / "cache/blob")
    (files.path / "dog/circle").symlink_to(files.path)
    (files.path / "dog/again.png").symlink_to(files.path / "dog/b.png")
    os.link(files.path / "dog/b.png", os.fsencode(files.path) + b"/dog/caf\xe9.png")

    async def test(trader: Any) -> None:
        refused = await trader.take("IMAGE_FOLDERS", files.path, tmp_path / "native", copy_images=True)
        assert {(each.rule, each.file) for each in refused.findings} == {
            ("unreadable_file", "dog/gone.png"),
            ("link_in_a_circle", "dog/circle"),
            ("bad_name", "dog/caf\\udce9.png"),
        }
        assert all(each.message for each in refused.findings)
        taken = await trader.take("IMAGE_FOLDERS", files.path, tmp_path / "native", copy_images=True, lenient=True)
        assert taken.error == ""
        assert taken.json() == {"a.png": "cat", "again.png": "dog", "b.png": "dog", "c.png": "dog"}

    trade(test)


def test_a_label_file_that_is_a_link_to_nothing_says_not_that_nothing_is_there(
    trade: Any, files: Any, tmp_path: Path
) -> None:
    files.text("data.yaml", "train: images\nval: images\nnames: [cat]\n").image("images/a.png").image("images/b.png")
    files.text("labels/a.txt", "0 0.5 0.5 0.5 0.5\n")
    (files.path / "labels/b.txt").symlink_to(tmp_path / "cache/blob")

    async def test(trader: Any) -> None:
        refused = await trader.take("YOLO_DETECT", files.path, tmp_path / "native")
        assert refused.errors == ["unreadable_file"]

    trade(test)
