"""Lists over their pages: an operation is a generator, so a test can be its driver."""

from __future__ import annotations

from typing import Any

import pytest
from sihlai.scheduler.v1 import project_service_pb2 as pb

from services.client.call import PROJECTS, Ask, whole


def answered(operation: Any, count: int, size: int) -> tuple[Any, list[tuple[int, str]]]:
    """What the operation gives where there are `count` projects in pages of `size`; and the pages it asked for."""
    asked: list[tuple[int, str]] = []
    step = next(operation)
    while True:
        assert isinstance(step, Ask)
        asked.append((step.request.page_size, step.request.page_token))
        start = int(step.request.page_token or 0)
        names = [pb.Project(name=f"projects/p{number}") for number in range(start, min(start + size, count))]
        following = str(start + size) if start + size < count else ""
        try:
            step = operation.send(pb.ListProjectsResponse(projects=names, next_page_token=following))
        except StopIteration as end:
            return end.value, asked


@pytest.mark.parametrize(("count", "tokens"), [(0, [""]), (3, [""]), (7, ["", "3", "6"])])
def test_a_list_of_several_pages_is_given_as_one(count: int, tokens: list[str]) -> None:
    found, asked = answered(whole(PROJECTS.ListProjects, pb.ListProjectsRequest()), count, 3)
    assert [project.name for project in found.projects] == [f"projects/p{number}" for number in range(count)]
    assert found.next_page_token == ""
    assert [token for _, token in asked] == tokens
    assert all(size > 0 for size, _ in asked)
