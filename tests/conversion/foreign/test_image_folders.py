"""Image folders in and out."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from sihlai.conversion.v1 import task_pb2


def test_a_folder_is_a_category_and_equal_names_are_told_apart(look: Any, files: Any) -> None:
    for path in ("cat/1.png", "cat/2.png", "dog/1.png", "no/3.png"):
        files.image(path)
    found = look("image folders", files.path)
    assert found.rules == []
    assert found.dataset.vocabulary.names == ("cat", "dog", "no")
    assert found.annotations == {"cat__1.png": "cat", "cat__2.png": "cat", "dog__1.png": "dog", "no__3.png": "no"}


def test_names_that_are_unlike_stay_and_an_image_in_no_folder_is_unlabelled(look: Any, files: Any) -> None:
    found = look("image folders", files.image("cat/1.png").image("a/b/2.png").image("3.png").path)
    assert found.annotations == {"1.png": "cat", "2.png": "a/b", "3.png": None}
    assert found.rules == ["image_without_category"]


def test_a_single_folder_is_perhaps_no_category(look: Any, files: Any) -> None:
    found = look("image folders", files.image("images/1.png").image("images/2.png").path)
    assert found.annotations == {"1.png": "images", "2.png": "images"}
    assert found.rules == ["one_category"]


def test_a_split_is_a_folder_above_the_categories(trade: Any, files: Any, tmp_path: Path) -> None:
    files.image("train/cat/1.png").image("train/dog/2.png").image("val/cat/3.png")

    async def test(trader: Any) -> None:
        several = await trader.take("IMAGE_FOLDERS", files.path, tmp_path / "native", copy_images=True)
        assert "there are: train, val" in several.error
        scattered = await trader.take("IMAGE_FOLDERS", files.path, tmp_path / "native", split="train")
        assert scattered.error.startswith("INVALID_ARGUMENT: copy_images")
        taken = await trader.take("IMAGE_FOLDERS", files.path, tmp_path / "native", split="train", copy_images=True)
        assert taken.json() == {"1.png": "cat", "2.png": "dog"}

    trade(test)


def test_categories_come_back_and_what_folders_do_not_say_is_told(trade: Any, dataset: Any, tmp_path: Path) -> None:
    dataset.write(
        "task: multiclass classification\ncategories: [dog, cat/wild, unused]\nordered: true\nannotations: l.yaml\n",
        **{"l.yaml": "a.png: dog\nb.png: cat/wild\nc.png: dog\nd.png:\n"},
    )

    async def test(trader: Any) -> None:
        refused = await trader.give("IMAGE_FOLDERS", dataset.path, tmp_path / "folders")
        assert refused.error.startswith("INVALID_ARGUMENT: copy_images")
        given = await trader.give("IMAGE_FOLDERS", dataset.path, tmp_path / "folders", copy_images=True)
        assert [f.value for f in given.findings] == ["order", "unused", "null"]
        taken = await trader.take("IMAGE_FOLDERS", tmp_path / "folders", tmp_path / "back", copy_images=True)
        assert taken.json() == {"a.png": "dog", "b.png": "cat/wild", "c.png": "dog"}
        for name in "abc":
            copy = (tmp_path / f"back/images/{name}.png").read_bytes()
            assert copy == (dataset.path / f"images/{name}.png").read_bytes()

    trade(test)


@pytest.mark.parametrize("name", ["..", "a/../../b", "/etc", "a//b", "é" * 130, "c:\\x"])
def test_a_category_that_could_lead_out_of_the_folder_is_refused(
    trade: Any, dataset: Any, tmp_path: Path, name: str
) -> None:
    dataset.write(
        f"task: multiclass classification\ncategories: ['{name}']\nannotations: labels.yaml\n",
        **{"labels.yaml": f"a.png: '{name}'\n"},
    )

    async def test(trader: Any) -> None:
        given = await trader.give("IMAGE_FOLDERS", dataset.path, tmp_path / "folders", copy_images=True)
        assert given.error.startswith("FAILED_PRECONDITION")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "store"]

    trade(test)


def test_real_characters_become_identities(trade: Any, real: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(real("omniglot_small1") / "images_background_small1.zip") as archive:
        # Three drawings of each character: all 2,720 take a minute where the disk is slow.
        names = [name for name in archive.namelist() if name.endswith(("_01.png", "_02.png", "_20.png"))]
        archive.extractall(tmp_path / "foreign", names)
    root = tmp_path / "foreign/images_background_small1"

    async def test(trader: Any) -> None:
        taken = await trader.take("IMAGE_FOLDERS", root, tmp_path / "native", copy_images=True)
        assert (taken.rules, taken.result.images_in, taken.result.annotations_out) == ([], 408, 408)
        categories = taken.json("metadata.json")["categories"]
        assert (len(categories), categories[0]) == (136, "Balinese/character01")
        assert taken.json()["0108_01.png"] == "Balinese/character01"
        converted = await trader.service.convert(taken.result.dataset, task_pb2.TASK_METRIC_LEARNING)
        assert trader.service.converted(converted)["metadata"]["identities"] == categories
        given = await trader.give("IMAGE_FOLDERS", tmp_path / "native", tmp_path / "back", copy_images=True)
        assert given.rules == []

    trade(test)
    before = {path.relative_to(root): path.read_bytes() for path in root.rglob("*.png")}
    after = {path.relative_to(tmp_path / "back"): path.read_bytes() for path in (tmp_path / "back").rglob("*.png")}
    assert after == before
