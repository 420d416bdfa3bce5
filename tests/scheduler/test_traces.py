"""The trace of a request goes with what it makes happen: into events, into the log, and on to the services it calls."""

from __future__ import annotations

import asyncio

from sihlai.conversion.v1 import conversion_service_pb2, conversion_service_pb2_grpc
from sihlai.event.v1 import event_pb2
from sihlai.scheduler.v1 import job_service_pb2

from services.chassis import rpc
from services.chassis.auth.guard import OpenGuard
from services.chassis.config import ServerConfig
from services.scheduler.store.outbox import OutboxStore

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


async def events(client) -> list[event_pb2.Event]:
    """All that happened, as it will be told."""
    stored = await OutboxStore(client.scheduler.database).oldest(100)
    return [event_pb2.Event.FromString(each.payload) for each in stored]


def test_events_carry_the_trace_of_the_request_that_made_them_happen(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            submit = client.submission()
            job = (await client.jobs.SubmitJob(submit, metadata=(("traceparent", TRACE),))).job
            stop = job_service_pb2.StopJobRequest(name=job.name)
            await client.jobs.StopJob(stop, metadata=(("traceparent", OTHER),))
            traces = {event.subject.rpartition(".")[2]: event.traceparent for event in await events(client)}
            assert traces == {"submitted": TRACE, "ended": OTHER}

    asyncio.run(test())


def test_calls_at_once_do_not_mix_their_traces_and_what_is_no_trace_is_left_out(serve):
    async def test():
        async with serve() as client:
            given = [TRACE, OTHER, "no trace", "x" * 3_000, ""]
            for number in range(len(given)):
                await client.create_project(f"p-{number}")
            calls = [
                client.jobs.SubmitJob(client.submission(f"p-{number}"), metadata=(("traceparent", trace),))
                for number, trace in enumerate(given)
            ]
            await asyncio.gather(*calls)
            found = {event.job_submitted.job.name.split("/")[1]: event.traceparent for event in await events(client)}
            assert found == {"p-0": TRACE, "p-1": OTHER, "p-2": "", "p-3": "", "p-4": ""}

    asyncio.run(test())


class Listening(conversion_service_pb2_grpc.ConversionServiceServicer):
    """A conversion service that hears with which trace it is asked; it knows nothing else."""

    def __init__(self) -> None:
        self.traces: set[str] = set()

    async def PlanConversion(self, request, context):  # noqa: N802 - the RPC's name
        self.traces |= {str(value) for key, value in context.invocation_metadata() if key == "traceparent"}
        return conversion_service_pb2.PlanConversionResponse()


def test_services_that_a_request_needs_are_asked_with_its_trace(serve):
    async def test():
        listening = Listening()
        server = rpc.Server(ServerConfig(drain_seconds=0.1), OpenGuard())
        server.add(
            "sihlai.conversion.v1.ConversionService",
            lambda s: conversion_service_pb2_grpc.add_ConversionServiceServicer_to_server(listening, s),
        )
        await server.start()
        async with serve(conversion_address=server.address) as client:
            await client.create_project()
            await client.jobs.SubmitJob(client.submission(), metadata=(("traceparent", TRACE),))
            assert listening.traces == {TRACE}
        await server.stop()

    asyncio.run(test())
