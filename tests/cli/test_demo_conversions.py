"""The demo's chapter on datasets, against a conversion service that runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from PIL import Image

from services.chassis.endpoints import Endpoints
from services.cli.demo.audit import Audit
from services.cli.demo.conversions import show_conversions
from services.cli.demo.screen import Screen
from services.cli.demo.truth import KINDS
from services.client.face import AsyncClient
from tests.cli.conversion_process import access, conversion_process


def test_five_conversions_of_the_scenes_give_exactly_what_was_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit, sheets = Audit(), tmp_path / "sheets"

    async def show(address: str) -> None:
        async with AsyncClient(Endpoints(given={"conversion": address}, said_token=access())) as client:
            await show_conversions(client, screen=Screen(), audit=audit, folder=tmp_path / "scenes", sheets=sheets)

    with conversion_process(tmp_path, root=tmp_path / "scenes") as address:
        asyncio.run(show(address))
    assert audit.problems == []
    assert len(audit.checks) == 2 * len(KINDS) + 1
    shown = capsys.readouterr().out
    assert "→ quadrilateral detection" in shown
    assert str(sheets) in shown.replace("\n", "")
    for sheet in sheets.iterdir():
        with Image.open(sheet) as image:
            image.verify()
    assert len(list(sheets.iterdir())) == len(KINDS)
