"""Which format a foreign dataset has, where there is only one answer."""

from __future__ import annotations

from services.chassis.errors import InvalidArgument, Violation
from services.conversion.finding import Report
from services.conversion.foreign import FOREIGN_FORMATS
from services.conversion.foreign.format import Files

PLAIN = "image folders"
SHOWN_FILES_MAX = 6


async def find_format(files: Files, report: Report) -> str:
    """The name of the format. Raises InvalidArgument where none fits, with what was looked for, or several do."""
    found = [name for name, each in FOREIGN_FORMATS.items() if await each.recognises(files)]
    if len(found) > 1 and PLAIN in found:  # images in folders are so many things that any other name says more
        found.remove(PLAIN)
    if len(found) == 1:
        return found[0]
    if found:
        description = f"may be {', '.join(found[:-1])} or {found[-1]}: say which"
    else:
        looked = "; ".join(f"{name}: {each.looks_for}" for name, each in FOREIGN_FORMATS.items())
        some = ", ".join(list(files.paths)[:SHOWN_FILES_MAX])
        description = f"is not clear from the files ({some} …): say which. Looked for were {looked}"
    raise InvalidArgument([Violation(field="format", description=description)])
