"""Request ids: the same request has one effect and one answer, also after a restart, also when two come at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, select

from services.chassis.errors import AlreadyExists, Reason
from services.scheduler.domain.request import Request
from services.scheduler.store.statement import Statement, Values
from services.scheduler.store.tables import request_ids
from services.scheduler.store.transaction import Question, Transaction

Value = TypeVar("Value")


_KNOWN = Statement(select(request_ids.c.digest, request_ids.c.answer), key=request_ids.c.request_id)


def first_answer(connection: Connection, request: Request) -> bytes | None:
    """The answer that this request got before; None where it is new. AlreadyExists where the id was for another one."""
    if not request.request_id:
        return None
    row = _KNOWN.one(connection, {"id": request.request_id})
    return _same(request, row) if row is not None else None


def asked_first(request: Request) -> list[Question]:
    """What `answered` asks."""
    return [(_KNOWN, {"id": request.request_id})] if request.request_id else []


def answered(
    transaction: Transaction, request: Request, work: Callable[[], Value], encode: Callable[[Value], bytes]
) -> bytes:
    """The first answer to `request`: recorded, or made by `work` and recorded now."""
    if not request.request_id:
        return encode(work())
    known = transaction.answered(request.request_id) or transaction.look_up(_KNOWN, id=request.request_id)
    if known is not None:
        return _same(request, known)
    answer = encode(work())
    transaction.answer(request.request_id, request.digest, answer)
    return answer


def _same(request: Request, known: Values) -> bytes:
    if known["digest"] != request.digest:
        raise AlreadyExists(
            Reason.REQUEST_ID_REUSED,
            f"the request id {request.request_id} was used for another request: make a new one for each intent",
            {"request_id": request.request_id},
        )
    return bytes(known["answer"])
