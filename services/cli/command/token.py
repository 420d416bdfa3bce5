"""`sihlai token`: create, list, inspect, revoke, rotate-key."""

from __future__ import annotations

import time
import uuid
from datetime import UTC
from pathlib import Path
from typing import Annotated

import typer
from sihlai.auth.v1 import token_service_pb2 as pb

from services.chassis.files import replace_file
from services.cli.error import EXIT_NOT_UNDERSTOOD, CommandError
from services.cli.question import confirm
from services.cli.session import Session, command
from services.cli.view.token_table import principal_table, tokens_table
from services.client.call import TOKENS, ask, whole
from services.client.number import number

DAY_SECONDS = 86_400
DAYS_MAX = 36_600.0
"""A scheduler may want fewer; more are a slip."""
ROLES = {"viewer": pb.ROLE_VIEWER, "editor": pb.ROLE_EDITOR, "admin": pb.ROLE_ADMIN}
app = typer.Typer(no_args_is_help=True, help="Who may do what: every call carries a token.")

TokenArgument = Annotated[str, typer.Argument(metavar="TOKEN", help="Its id, as `sihlai token list` shows it.")]


@app.command("create")
@command
async def create_token(
    session: Session,
    holder: Annotated[
        str, typer.Argument(metavar="HOLDER", help="A user such as `ada`; or runners/gpu-1, runners/-, services/NAME.")
    ],
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROJECT=ROLE",
            help="viewer, editor or admin in a project; `-=viewer` in all. Several may be given.",
        ),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="An admin of the whole installation.")] = False,
    days: Annotated[float | None, typer.Option(metavar="DAYS", help="How long it lives; default 30.")] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it into a file that its owner alone can read.")
    ] = None,
) -> None:
    """Make a token. Its text is shown this once: put it into SIHLAI_TOKEN, or a runner's --token-file.

    Example: sihlai token create ada --role digits=editor --days 90
    """
    principal = pb.Principal(subject=subject_of(holder), installation_admin=admin, grants=map(grant_of, role or ()))
    request = pb.CreateTokenRequest(principal=principal, description=description, request_id=str(uuid.uuid4()))
    if days is not None:
        request.expire_time.FromSeconds(int(time.time() + number(days, "--days", at_most=DAYS_MAX) * DAY_SECONDS))
    answer = await session.client.run(ask, TOKENS.CreateToken, request)
    if to is not None:
        replace_file(to, f"{answer.text}\n".encode(), mode=0o600)
        answer.ClearField("text")
    if session.output.as_json:
        session.output.json(answer)
        return
    session.output.errors.print(tokens_table([answer.token]))
    session.output.line(str(to) if to is not None else answer.text)


@app.command("list")
@command
async def list_tokens(session: Session) -> None:
    """List the tokens that you could give: whose they are, what they let their holders do, and when they end.

    Example: sihlai token list
    """
    found = await session.client.run(whole, TOKENS.ListTokens, pb.ListTokensRequest())
    _tell(session, found, list(found.tokens))


@app.command("inspect")
@command
async def inspect_token(
    session: Session,
    token: Annotated[
        str | None, typer.Argument(metavar="[TOKEN]", help="Its id; without one: the token of this command.")
    ] = None,
) -> None:
    """Show a token, or who you are.

    Example: sihlai token inspect
    """
    if token is not None:
        found = await session.client.run(ask, TOKENS.GetToken, pb.GetTokenRequest(name=name_of(token)))
        _tell(session, found, [found.token])
        return
    answer = await session.client.run(ask, TOKENS.WhoAmI, pb.WhoAmIRequest())
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.show(principal_table(answer))


@app.command("revoke")
@command
async def revoke_token(session: Session, token: TokenArgument) -> None:
    """Take a token back for good: every service refuses it within seconds, and its streams end.

    Example: sihlai token revoke 4f0c4e2b5d6a4c7e9a1b2c3d4e5f6a7b
    """
    answer = await session.client.run(ask, TOKENS.RevokeToken, pb.RevokeTokenRequest(name=name_of(token)))
    _tell(session, answer, [answer.token])


@app.command("rotate-key")
@command
async def rotate_key(
    session: Session,
    drop_old: Annotated[
        bool,
        typer.Option(
            "--drop-old",
            help="For a key that others have seen: nothing that it signed holds any more, your own token included.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Sign tokens with a new key from now on. Tokens of the old one hold until they end; all services keep running.

    Example: sihlai token rotate-key
    """
    if drop_old and not yes:
        confirm("refuse every token that there is, for good?", otherwise="every token that there is would hold no more")
    request = pb.RotateTokenKeyRequest(drop_old=drop_old, request_id=str(uuid.uuid4()))
    answer = await session.client.run(ask, TOKENS.RotateTokenKey, request)
    if session.output.as_json:
        session.output.json(answer)
        return
    end = answer.old_key_end_time.ToDatetime(tzinfo=UTC).astimezone()
    until = "holds no more" if drop_old else f"holds until its last token has ended, {end:%Y-%m-%d %H:%M} at the latest"
    session.output.line(f"tokens are signed by key {answer.key_id} now; {answer.old_key_id} {until}")


def subject_of(holder: str) -> str:
    """`ada` is users/ada."""
    return holder if "/" in holder else f"users/{holder}"


def name_of(token: str) -> str:
    """An id is a name without its first word."""
    return token if token.startswith("tokens/") else f"tokens/{token}"


def grant_of(text: str) -> pb.Grant:
    """`digits=editor`, or CommandError."""
    project, equals, role = text.rpartition("=")
    if not equals or not project or role not in ROLES:
        message = f"--role is {text!r}, but must be PROJECT=ROLE, such as digits=editor; roles are {', '.join(ROLES)}"
        raise CommandError(message, exit_code=EXIT_NOT_UNDERSTOOD)
    name = project if project.startswith("projects/") else f"projects/{project}"
    return pb.Grant(project=name, role=ROLES[role])


def _tell(
    session: Session,
    answer: pb.ListTokensResponse | pb.GetTokenResponse | pb.RevokeTokenResponse,
    tokens: list[pb.Token],
) -> None:
    if session.output.as_json:
        session.output.json(answer)
    else:
        session.output.show(tokens_table(tokens))
