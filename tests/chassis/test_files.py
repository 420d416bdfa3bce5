"""A file is there whole or not at all, whoever writes it and whatever breaks on the way."""

import os
import stat
import threading
from pathlib import Path

import pytest

from services.chassis.files import create_file, replace_file, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("synced", [True, False])
def test_content_takes_the_place_of_what_was_there(tmp_path: Path, synced: bool) -> None:
    path = tmp_path / "a"
    replace_file(path, b"first", synced=synced)
    replace_file(path, b"second", synced=synced)
    assert path.read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


def test_a_write_that_breaks_off_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    replace_file(path, b"first")
    with pytest.raises(OSError, match="the disk is full"), replacing(path) as file:  # noqa: PT012  # what the block does is the point
        file.write(b"sec")
        raise OSError(28, "the disk is full")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_is_missing_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        replace_file(tmp_path / "gone" / "a", b"content")


def test_of_many_that_create_a_file_one_does_and_the_others_find_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "key"
    created: list[bytes] = []
    found: list[bytes] = []

    def create(content: bytes) -> None:
        if create_file(path, content, mode=0o600):
            created.append(content)
        found.append(path.read_bytes())

    threads = [threading.Thread(target=create, args=(b"%d" % number * 1_000,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert found == created * 8
    assert names(tmp_path) == ["key"]


def test_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        with replacing(path, mode=0o600) as file:
            (draft,) = tmp_path.iterdir()
            assert stat.S_IMODE(draft.stat().st_mode) == 0o600
            file.write(b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
