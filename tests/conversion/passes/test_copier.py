"""What an interrupted call has copied is not copied again, and what it left half done is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.chassis.objects.store import open_store
from services.conversion.conveyor.work import Progress
from services.conversion.passes.copier import Copier, Copy
from services.conversion.store import draft as drafts_module
from services.conversion.store.draft import COPIES, DATASET, Draft, Drafts


def copied(tmp_path: Path, change: Callable[[Draft], None]) -> tuple[dict[str, bytes], list[Progress]]:
    """What is in the dataset after images were copied into a draft that was changed before, and what was told."""
    source = tmp_path / "source"
    source.mkdir()
    names = ("a.png", "b.png", "c.png")
    for name in names:
        (source / name).write_bytes(name.encode() * 10)
    told: list[Progress] = []

    async def main() -> dict[str, bytes]:
        with ThreadPoolExecutor(1) as executor:
            async with Drafts(tmp_path / "drafts", hours_max=1).taken("key", executor) as draft:
                change(draft)
                (draft.dataset / "images").mkdir()
                (draft.dataset / "images/list.txt").write_text("a sink's")
                copier = Copier(executor=executor, requests_max=1, clock=time.monotonic)
                files = [Copy(name, f"images/{name}", 50) for name in names]
                await copier.copy(open_store(source.as_uri()), files, draft, told.append)
                folder = draft.dataset
                paths = (path for path in folder.rglob("*") if path.is_file())
                return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    return asyncio.run(main()), told


def test_what_is_whole_stays_what_is_half_is_copied_and_what_is_neither_goes(tmp_path: Path) -> None:
    def change(draft: Draft) -> None:
        (draft.copies / "images").mkdir(parents=True)
        (draft.copies / "images/a.png").write_bytes(b"x" * 50)  # by which it is known again
        (draft.copies / "images/b.png").write_bytes(b"half")
        (draft.copies / "images/.b.png.1234.draft").write_bytes(b"half")

    found, told = copied(tmp_path, change)
    assert found == {
        "images/a.png": b"x" * 50,
        "images/b.png": b"b.png" * 10,
        "images/c.png": b"c.png" * 10,
        "images/list.txt": b"a sink's",
    }
    assert [(each.done, each.total) for each in told] == [(1, 3), (3, 3)]


def test_copies_of_before_the_machine_was_switched_off_are_made_again(tmp_path: Path) -> None:
    async def leave() -> Path:
        with ThreadPoolExecutor(1) as executor:
            try:
                async with Drafts(tmp_path / "drafts", hours_max=1).taken("key", executor) as draft:
                    (draft.copies / "images").mkdir(parents=True)
                    (draft.copies / "images/a.png").write_bytes(bytes(50))
                    (draft.journal / "1").write_text("done")
                    raise asyncio.CancelledError
            except asyncio.CancelledError:
                return draft.folder

    folder = asyncio.run(leave())
    assert (folder / COPIES / "images/a.png").exists()
    assert not (folder / DATASET).exists()
    (folder / drafts_module.BOOT).write_text("another start of the machine")
    found, _ = copied(tmp_path, lambda draft: None)
    assert found["images/a.png"] == b"a.png" * 10
