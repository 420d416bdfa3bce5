"""Streams whose messages are serialised already, so that one message can be made once and sent to many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, cast

import grpc

METADATA_SECONDS_MAX = 5.0


def serialized_streams(server: grpc.aio.Server, methods: Collection[str]) -> grpc.aio.Server:
    """What a service is added to whose messages of these methods are bytes: they go out as they are.

    Such as `add_LogServiceServicer_to_server(servicer, serialized_streams(server, {"TailLogs"}))`. A method takes one
    request and answers with a stream; it sends with `send`.
    """
    return cast("grpc.aio.Server", _Registration(server, methods))


class Unread(Exception):  # noqa: N818 — it is what happened
    """A client has read nothing for too long."""


async def send(
    messages: AsyncGenerator[bytes, None],
    context: grpc.aio.ServicerContext[Any, Any],
    *,
    unread_seconds: float | None = None,
) -> None:
    """Send serialised messages, each when the one before is on its way: a client that does not read holds one.

    CancelledError where the client is gone, also where a write is the first to notice. Unread where it has read nothing
    for so many seconds.
    """
    begun = False
    async with aclosing(messages):
        async for message in messages:
            if not begun:
                await begin_answering(context)
                begun = True
            try:
                async with asyncio.timeout(unread_seconds):
                    await context.write(message)
            except TimeoutError as error:
                raise Unread from error
            except grpc.aio.InternalError as error:
                raise asyncio.CancelledError from error


async def begin_answering(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Send a stream's metadata ahead of its first message. Whoever cuts the stream off in a write can still say why.

    gRPC sends the two as one and takes neither for sent where that is cut off; the status would carry the metadata a
    second time, be refused by gRPC's core, and leave the client waiting for ever. Metadata waits for no reader, so it
    is sent to the end even when the stream is cut off meanwhile, but for METADATA_SECONDS_MAX at most: a peer may hang.
    CancelledError where the client is gone.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
    except asyncio.CancelledError:
        done, _ = await asyncio.wait({sending}, timeout=METADATA_SECONDS_MAX)
        if done and not sending.cancelled():
            sending.exception()  # of a client that is gone: nobody is left to tell
        raise


class _Registration:
    """The part of a server that generated code adds a service to."""

    def __init__(self, server: grpc.aio.Server, methods: Collection[str]) -> None:
        self._server = server
        self._methods = methods

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Not needed: the same handlers come method by method."""

    def add_registered_method_handlers(self, service_name: str, handlers: Mapping[str, Any]) -> None:
        """Add the service's methods."""
        assert set(self._methods) <= set(handlers), f"{service_name} has these methods"
        changed = {
            name: _passing_bytes(handler) if name in self._methods else handler for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, changed),))


def _passing_bytes(handler: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(
        handler.unary_stream, request_deserializer=handler.request_deserializer, response_serializer=None
    )
