"""Request ids: the same request has one effect and one answer, also after a restart, also when two come at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, bindparam, delete, insert, select

from services.chassis.errors import AlreadyExists, Reason
from services.scheduler.store.tables import request_ids
from services.scheduler.store.transaction import Transaction

Value = TypeVar("Value")


# Built once: see `queue`.
_KNOWN = select(request_ids.c.digest, request_ids.c.answer).where(request_ids.c.request_id == bindparam("id"))
_REMEMBER = insert(request_ids)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asks for what: the caller's id, which may be empty, and the digest of method and body."""

    request_id: str
    digest: bytes


def first_answer(connection: Connection, request: Request) -> bytes | None:
    """The answer that this request got before; None where it is new. AlreadyExists where the id was for another one."""
    if not request.request_id:
        return None
    row = connection.execute(_KNOWN, {"id": request.request_id}).one_or_none()
    if row is None:
        return None
    if row.digest != request.digest:
        raise AlreadyExists(
            Reason.REQUEST_ID_REUSED,
            f"the request id {request.request_id} was used for another request: make a new one for each intent",
            {"request_id": request.request_id},
        )
    answer: bytes = row.answer
    return answer


def answered(
    transaction: Transaction, request: Request, work: Callable[[], Value], encode: Callable[[Value], bytes]
) -> bytes:
    """The first answer to `request`: recorded, or made by `work` and recorded now."""
    known = first_answer(transaction.connection, request)
    if known is not None:
        return known
    answer = encode(work())
    if request.request_id:
        row = {
            "request_id": request.request_id,
            "digest": request.digest,
            "answer": answer,
            "create_time_us": transaction.now_us,
        }
        transaction.connection.execute(_REMEMBER, row)
    return answer


def forget_requests(transaction: Transaction, *, before_us: int) -> int:
    """Drop the ids of requests older than that; return how many."""
    query = delete(request_ids).where(request_ids.c.create_time_us < before_us)
    return transaction.connection.execute(query).rowcount
