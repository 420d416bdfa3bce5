"""`sihlai version`: of this command, and of each service."""

from __future__ import annotations

from importlib.metadata import version

from rich.table import Table
from rich.text import Text

from services.chassis.endpoints import SERVICES, NoEndpointError
from services.chassis.errors import SihlaiError
from services.cli.session import Session, command
from services.client.call import installed


@command
async def show_versions(session: Session) -> None:
    """Show the version of this command and of each service.

    Example: sihlai version
    """
    found = {"command": version("sihlai")}
    for service in SERVICES:
        try:
            found[service] = (await session.client.run(installed, service)).version
        except (SihlaiError, NoEndpointError) as error:
            found[service] = f"does not answer: {error}"
    if session.output.as_json:
        session.output.json(found)
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in found.items():
        table.add_row(name, Text(text))
    session.output.show(table)
