"""Copies of images: the bytes of the source, whichever way they took, and nothing of it where one is gone."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path

import pytest

from services.chassis.errors import FailedPrecondition, PermissionDenied, SihlaiError, Unavailable
from services.chassis.objects.store import ObjectNotFound, open_store
from services.conversion.source.copying import PART_BYTES, copy_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a file, one in a folder in it, and links: within it, out of it, and a folder's out of it."""
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(bytes(range(256)) * 1_000)
    (folder / "deep/b.png").write_bytes(b"b")
    (folder / "again.png").symlink_to("deep/b.png")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/c.png").write_text("x")
    (folder / "out.png").symlink_to(tmp_path / "secrets/c.png")
    (folder / "out").symlink_to(tmp_path / "secrets")
    os.mkfifo(folder / "never.png")
    return folder


def copy(source: Path, files: dict[str, Path]) -> None:
    asyncio.run(copy_files(open_store(source.as_uri(), allowed_roots=[source.parent]), list(files.items())))


def test_copies_are_the_bytes_of_the_source_and_files_of_their_own(source: Path, tmp_path: Path) -> None:
    paths = ("a.png", "deep/b.png", "again.png")
    copy(source, {path: tmp_path / "new" / path for path in paths})
    for path in paths:
        assert (tmp_path / "new" / path).read_bytes() == (source / path).read_bytes()
        assert not (tmp_path / "new" / path).is_symlink()
        assert not (tmp_path / "new" / path).samefile(source / path)


def test_a_file_of_several_parts_is_copied_whole_also_to_another_file_system(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(2 * PART_BYTES + 1)
    (tmp_path / "large.png").write_bytes(content)
    memory = Path("/dev/shm")
    elsewhere = [memory] if memory.is_dir() and os.access(memory, os.W_OK) else []
    for place in (tmp_path, *elsewhere):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            copy(tmp_path, {"large.png": Path(folder) / "large.png"})
            assert (Path(folder) / "large.png").read_bytes() == content


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("gone.png", ObjectNotFound),
        ("gone/a.png", ObjectNotFound),
        ("deep", ObjectNotFound),
        ("out.png", PermissionDenied),
        ("out/c.png", PermissionDenied),
        ("never.png", FailedPrecondition),
    ],
)
def test_what_is_gone_or_leads_outside_is_said_and_not_copied(
    source: Path, tmp_path: Path, path: str, refusal: type[SihlaiError]
) -> None:
    with pytest.raises(refusal):
        copy(source, {path: tmp_path / "new/b.png"})
    assert not (tmp_path / "new/b.png").exists()


def test_a_place_that_takes_no_copy_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"a\.png cannot be written: File exists"):
        copy(source, {"deep/b.png": source / "a.png/b.png"})
