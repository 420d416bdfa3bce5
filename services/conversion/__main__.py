"""The conversion service's process: `python -m services.conversion --store-uri file:///…`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from sihlai.conversion.v1 import conversion_service_pb2
from sihlai.conversion.v1.conversion_service_pb2_grpc import add_ConversionServiceServicer_to_server

from services.chassis import log as logs
from services.chassis.bus import Bus
from services.chassis.config import load
from services.chassis.errors import ConfigurationError, SihlaiError
from services.chassis.rpc import Server, run_until_signal
from services.conversion.announcement import Announcer, announce_nothing
from services.conversion.config import PREFIX, ConversionConfig
from services.conversion.library import Library
from services.conversion.reader import METADATA_BYTES_MAX, Reader
from services.conversion.servicer import ConversionServicer
from services.conversion.source import Access
from services.conversion.store import ResultStore
from services.conversion.survey import IndexLimits
from services.conversion.work import Slots

PROG = "sihlai-conversion"
SERVICE = conversion_service_pb2.DESCRIPTOR.services_by_name["ConversionService"].full_name

log = logs.get_logger(__name__)


def main() -> None:
    """Run until SIGTERM or SIGINT. A wrong configuration is one sentence and exit code 2."""
    try:
        config = load(ConversionConfig, argv=sys.argv[1:], environ=os.environ, prog=PROG, prefix=PREFIX)
        logs.configure("conversion", format=config.log_format, level=config.log_level)
        asyncio.run(serve(config))
    except (ConfigurationError, SihlaiError) as error:
        sys.exit(f"{PROG}: {error}")


async def serve(config: ConversionConfig) -> None:
    """Serve until a signal."""
    server = Server(config)
    bus = await Bus.connect(config.nats_url, name="conversion") if config.nats_url else None
    announcer = Announcer(bus, lambda: datetime.now(UTC)) if bus is not None else None
    with ThreadPoolExecutor(config.threads_max, thread_name_prefix="reader") as executor:
        library = build_library(config, executor, announcer)
        servicer = ConversionServicer(library, server.stopping)
        server.add(SERVICE, lambda target: add_ConversionServiceServicer_to_server(servicer, target))
        try:
            await run_until_signal(server)
        finally:
            if announcer is not None:
                await announcer.close()
            if bus is not None:
                await bus.close()


def build_library(config: ConversionConfig, executor: ThreadPoolExecutor, announcer: Announcer | None) -> Library:
    """Everything below the servicer, wired by hand."""
    store = ResultStore(config.store_uri, endpoint_url=config.store_endpoint_url)
    swept = store.sweep()
    if swept:
        log.info("drafts_swept", count=swept)
    access = Access(
        allowed_roots=(*config.allowed_roots, *([store.local] if store.local is not None else [])),
        allowed_hosts=config.allowed_endpoint_hosts,
        images_max=config.images_max,
        file_bytes_max=max(config.image_bytes_max, config.annotation_bytes_max, METADATA_BYTES_MAX),
    )
    reader = Reader(
        access=access,
        store=store,
        limits=IndexLimits(
            image_bytes_max=config.image_bytes_max,
            image_pixels_max=config.image_pixels_max,
            requests_max=config.requests_max,
        ),
        annotation_bytes_max=config.annotation_bytes_max,
        partial_indices_max=config.partial_indices_max,
        progress_seconds=config.progress_seconds,
        executor=executor,
        clock=time.monotonic,
    )
    return Library(
        reader=reader,
        store=store,
        slots=Slots(running_max=config.works_running_max, waiting_max=config.works_waiting_max),
        executor=executor,
        clock=time.monotonic,
        progress_seconds=config.progress_seconds,
        findings_max=config.findings_max,
        on_converted=announcer.announce if announcer is not None else announce_nothing,
    )


if __name__ == "__main__":
    main()
