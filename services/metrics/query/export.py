"""All points of a job, piece by piece: for files, not for screens."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.metrics.point import SELECTED_SERIES_MAX, Selector
from services.metrics.query.query import Curve, Layout, PageStart, Queries


async def exported(queries: Queries, job_uid: str, selector: Selector) -> AsyncIterator[list[Curve]]:
    """The points that count, each once, series after series; a series may go on in the next list.

    What is stored meanwhile may be among them or not.
    """
    after: tuple[str, str, int] | None = None
    more = True
    while more:
        selection, more = await queries.select_page(job_uid, selector, after=after, size=SELECTED_SERIES_MAX)
        start: PageStart | None = None
        while True:
            curves, start = await queries.points(selection, Layout(), {}, start=start)
            # As they are read: the one that goes on in the next page is the last of this one.
            yield sorted(curves, key=lambda curve: (curve.definition.is_system, curve.definition.series_id))
            if start is None:
                break
        if selection.all:
            last = selection.all[-1]
            after = job_uid, last.name, last.series_id
