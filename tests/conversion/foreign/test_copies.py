"""Copies of images: the bytes of the source, whichever way they took, and nothing of it where one is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.chassis.errors import PermissionDenied, Unavailable
from services.chassis.objects.store import ObjectNotFound, open_store
from services.conversion.source.place import copy_files


def test_a_copy_is_the_same_bytes_and_what_is_gone_or_does_not_fit_is_said(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.png").write_bytes(bytes(range(256)) * 1_000)
    (tmp_path / "source/out.png").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("x")
    folder = open_store((tmp_path / "source").as_uri())
    asyncio.run(copy_files(folder, [("a.png", tmp_path / "new/a.png")]))
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "source/a.png").read_bytes()
    for gone, refusal in (("b.png", ObjectNotFound), ("out.png", PermissionDenied)):
        with pytest.raises(refusal):
            asyncio.run(copy_files(folder, [(gone, tmp_path / "new/b.png")]))
    assert not (tmp_path / "new/b.png").exists()
    with pytest.raises(Unavailable, match="cannot be written"):
        asyncio.run(copy_files(folder, [("a.png", tmp_path / "new/a.png/b.png")]))
