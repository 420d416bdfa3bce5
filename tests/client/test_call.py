"""Lists over their pages: an operation takes its transport, so a test can be it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sihlai.scheduler.v1 import project_service_pb2 as pb

from services.client.call import PROJECTS, whole


class Pages:
    """Gives `count` projects in pages of `size`, and keeps what was asked for."""

    def __init__(self, count: int, size: int) -> None:
        self.asked: list[tuple[int, str]] = []
        self._count, self._size = count, size

    async def ask(self, method: object, request: pb.ListProjectsRequest, seconds: float) -> pb.ListProjectsResponse:
        self.asked.append((request.page_size, request.page_token))
        start = int(request.page_token or 0)
        end = min(start + self._size, self._count)
        names = [pb.Project(name=f"projects/p{number}") for number in range(start, end)]
        return pb.ListProjectsResponse(projects=names, next_page_token=str(end) if end < self._count else "")


@pytest.mark.parametrize(("count", "tokens"), [(0, [""]), (3, [""]), (7, ["", "3", "6"])])
def test_a_list_of_several_pages_is_given_as_one(count: int, tokens: list[str]) -> None:
    pages: Any = Pages(count, 3)
    found = asyncio.run(whole(pages, PROJECTS.ListProjects, pb.ListProjectsRequest()))
    assert [project.name for project in found.projects] == [f"projects/p{number}" for number in range(count)]
    assert found.next_page_token == ""
    assert [token for _, token in pages.asked] == tokens
    assert all(size > 0 for size, _ in pages.asked)
