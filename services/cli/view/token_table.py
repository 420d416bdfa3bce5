"""Tokens as people see them: whose they are, and what they let their holders do."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table
from sihlai.auth.v1 import token_service_pb2 as pb

from services.cli.view.listing import Column, Listing
from services.cli.view.table import moment


def tokens_table(tokens: Iterable[pb.Token]) -> Listing:
    """One row a token."""
    table = Listing(
        Column(name="token"),
        Column(name="holder", breaks=True),
        Column(name="may", goes=1, breaks=True),
        Column(name="ends", goes=2, breaks=True),
        Column(name="made by", goes=4),
        Column(name="for", goes=3, breaks=True),
    )
    for token in tokens:
        ends = moment(token.expire_time)
        if token.HasField("revoke_time"):
            ends = f"[red]revoked[/red] {moment(token.revoke_time)} by {escape(token.revoker)}"
        table.add_row(
            escape(token.name.removeprefix("tokens/")),
            escape(token.principal.subject) or "-",
            escape(rights_text(token.principal)),
            ends,
            escape(token.creator),
            escape(token.description),
        )
    return table


def principal_table(who: pb.WhoAmIResponse) -> Table:
    """One line for each thing that is known of the caller."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("you are", escape(who.principal.subject))
    table.add_row("you may", escape(rights_text(who.principal)))
    if who.token:
        table.add_row("token", escape(who.token.removeprefix("tokens/")))
        table.add_row("ends", moment(who.expire_time))
    return table


def rights_text(principal: pb.Principal) -> str:
    """`everything`, or roles by project."""
    if principal.installation_admin:
        return "everything"
    roles = [
        f"{_project(grant)}: {pb.Role.Name(grant.role).removeprefix('ROLE_').lower()}" for grant in principal.grants
    ]
    kind = principal.subject.partition("/")[0]
    return ", ".join(roles) or {"runners": "run jobs", "services": "serve"}.get(kind, "nothing in any project")


def _project(grant: pb.Grant) -> str:
    return "all projects" if grant.project == "projects/-" else grant.project.removeprefix("projects/")
