"""The conversion service's process: `python -m services.conversion --store-uri file:///…`."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

from sihlai.conversion.v1 import conversion_service_pb2
from sihlai.conversion.v1.conversion_service_pb2_grpc import add_ConversionServiceServicer_to_server

from services.chassis import log as logs
from services.chassis.auth.carrying import TokenFile
from services.chassis.auth.guard import token_guard
from services.chassis.auth.keys import TokenVerifier
from services.chassis.auth.oidc.verifier import AccessVerifier
from services.chassis.auth.revocation import Revocations, follow_revocations
from services.chassis.bus import Bus, BusAccess
from services.chassis.config import load
from services.chassis.errors import ConfigurationError, SihlaiError
from services.chassis.machine import collect_seldom, cores
from services.chassis.nats_server import require_encrypted_bus
from services.chassis.objects.access import ObjectLimits
from services.chassis.rpc import Server, channel, run_until_signal
from services.chassis.tls import client_tls
from services.conversion.announcement import Announcer, announce_nothing
from services.conversion.config import PREFIX, ConversionConfig
from services.conversion.conveyor.conveyor import Conveyor
from services.conversion.conveyor.pool import WorkerPool
from services.conversion.conveyor.work import SlotLimits, Slots
from services.conversion.foreign.source import ForeignLimits
from services.conversion.library import Library
from services.conversion.passes.catalogue import CatalogueLimits, Cataloguer
from services.conversion.passes.copier import Copier
from services.conversion.passes.exchange import Exchange
from services.conversion.picture.gallery import Gallery, GalleryLimits
from services.conversion.raster.error import RasterLimits
from services.conversion.reader.annotation_set import SetReader
from services.conversion.reader.indexer import Indexer
from services.conversion.reader.reader import METADATA_BYTES_MAX, Reader
from services.conversion.servicer import ConversionServicer
from services.conversion.source.place import Access
from services.conversion.source.survey import IndexLimits
from services.conversion.store.destination import Destinations
from services.conversion.store.store import ResultStore

PROG = "sihlai-conversion"
SERVICE = conversion_service_pb2.DESCRIPTOR.services_by_name["ConversionService"].full_name

COLLECTION_THRESHOLDS = (10_000, 10, 1_000)
"""As gc.set_threshold has them. A full collection stops every call for a second where a large dataset is in memory, and
finds next to nothing, as records hold no cycles: it comes seldom therefore, and when nobody works."""
COLLECTION_SECONDS = 30.0
ENVELOPE_BYTES_MAX = 2**16
"""What an answer takes beside the images that it tells of."""

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
    revocations = Revocations(config.revocations_file)
    verifier = TokenVerifier.from_files(config.token_public_keys)
    access = AccessVerifier.configured(config, verifier)
    server = Server(config, token_guard(config, access, revocations))
    bus = None
    if config.nats_url:
        require_encrypted_bus(config, config.nats_url)
        bus = await Bus.connect(
            config.nats_url,
            name="conversion",
            access=BusAccess(
                credentials_file=config.nats_credentials_file,
                tls=client_tls(config.nats_ca_file, config.tls_certificate_file, config.tls_key_file),
            ),
        )
    announcer = Announcer(bus, lambda: datetime.now(UTC)) if bus is not None else None
    with (
        ThreadPoolExecutor(config.threads_max, thread_name_prefix="reader") as executor,
        WorkerPool(config.workers_max or cores()) as workers,
    ):
        library = build_library(config, executor, workers, announcer)
        background = {
            asyncio.create_task(sweep_now_and_then(library.store, config), name="sweeping"),
            asyncio.create_task(collect_when_idle(library.slots), name="collecting"),
            asyncio.create_task(access.run(), name="issuer"),
        }
        if config.scheduler_address:
            token = TokenFile.required(config.token_file) if config.token_file is not None else None
            scheduler = channel(
                config.scheduler_address,
                token=token,
                tls=client_tls(config.tls_ca_file, config.tls_certificate_file, config.tls_key_file),
            )
            background.add(
                asyncio.create_task(follow_revocations(revocations, scheduler, verifier.learn), name="revocations")
            )
        servicer = ConversionServicer(library, server.stopping)
        server.add(SERVICE, lambda target: add_ConversionServiceServicer_to_server(servicer, target))
        try:
            await run_until_signal(server)
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            if announcer is not None:
                await announcer.close()
            if bus is not None:
                await bus.close()


async def sweep_now_and_then(store: ResultStore, config: ConversionConfig) -> None:
    """Remove what nobody uses any more, at once and then every so often. A store that does not answer waits."""
    while True:
        try:
            drafts = await asyncio.to_thread(store.sweep)
            datasets = await store.expire(config.datasets_days_max)
            indices = await store.expire_indices(config.indices_days_max)
            if drafts or datasets or indices:
                log.info("swept", drafts=drafts, datasets=datasets, indices=indices)
        except (SihlaiError, OSError) as error:
            log.warning("sweep_failed", problem=str(error))
        await asyncio.sleep(config.sweep_minutes * 60)


async def collect_when_idle(slots: Slots) -> None:
    """Keep full collections of garbage away from work."""
    collect_seldom(*COLLECTION_THRESHOLDS)
    while True:
        await asyncio.sleep(COLLECTION_SECONDS)
        if slots.idle:
            gc.collect()


def build_library(
    config: ConversionConfig, executor: ThreadPoolExecutor, workers: WorkerPool, announcer: Announcer | None
) -> Library:
    """Everything below the servicer, wired by hand."""
    store = build_store(config)
    access = build_access(config, store)
    indexer = build_indexer(config, store, executor)
    set_reader = SetReader(
        access=access, indexer=indexer, annotation_bytes_max=config.annotation_bytes_max, executor=executor
    )
    reader = Reader(access=access, indexer=indexer, set_reader=set_reader, executor=executor)
    destinations = Destinations(
        access=access.within(config.allowed_destination_roots),
        store_uri=store.uri,
        closed_roots=config.closed_destination_roots,
        requests_max=config.requests_max,
        upload_seconds_max=config.upload_minutes_max * 60,
        free_bytes_min=config.destination_free_bytes_min,
        executor=executor,
    )
    conveyor = Conveyor(
        threads=executor, workers=workers, workers_max=workers.workers_max, requests_max=config.requests_max
    )
    slots = Slots(slot_limits(config))
    exchange = Exchange(
        access=access,
        indexer=indexer,
        reader=reader,
        store=store,
        destinations=destinations,
        conveyor=conveyor,
        slots=slots,
        executor=executor,
        clock=time.monotonic,
        progress_seconds=config.progress_seconds,
        findings_max=config.findings_max,
        copier=Copier(executor=executor, requests_max=config.requests_max, clock=time.monotonic),
        limits=foreign_limits(config),
        raster_limits=RasterLimits(pixels_max=config.image_pixels_max, pages_max=1),
    )
    return Library(
        reader=reader,
        store=store,
        destinations=destinations,
        conveyor=conveyor,
        gallery=Gallery(limits=gallery_limits(config), executor=executor),
        exchange=exchange,
        cataloguer=Cataloguer(
            reader=reader,
            conveyor=conveyor,
            executor=executor,
            limits=catalogue_limits(config),
            clock=time.monotonic,
            progress_seconds=config.progress_seconds,
        ),
        slots=slots,
        executor=executor,
        clock=time.monotonic,
        progress_seconds=config.progress_seconds,
        findings_max=config.findings_max,
        on_converted=announcer.announce if announcer is not None else announce_nothing,
    )


def build_store(config: ConversionConfig) -> ResultStore:
    """The system's own place for results."""
    return ResultStore(
        config.store_uri,
        endpoint_url=config.store_endpoint_url,
        limits=object_limits(config),
        draft_hours_max=config.draft_hours_max,
        requests_max=config.requests_max,
    )


def build_access(config: ConversionConfig, store: ResultStore) -> Access:
    """What opens users' sources. The store's datasets are sources too."""
    read_bytes_max = max(
        config.image_bytes_max, config.annotation_bytes_max, config.foreign_document_bytes_max, METADATA_BYTES_MAX
    )
    return Access(
        allowed_roots=(*config.allowed_roots, *([store.local] if store.local is not None else [])),
        closed_roots=config.closed_roots,
        allowed_hosts=config.allowed_endpoint_hosts,
        own_credentials_uris=(*config.own_credentials_uris, store.uri),
        images_max=config.images_max,
        limits=replace(object_limits(config), read_bytes_max=read_bytes_max),
        buckets_max=config.buckets_max,
    )


def build_indexer(config: ConversionConfig, store: ResultStore, executor: ThreadPoolExecutor) -> Indexer:
    """What makes indices of images, and keeps them in the store."""
    return Indexer(
        store=store,
        limits=IndexLimits(
            image_bytes_max=config.image_bytes_max,
            image_pixels_max=config.image_pixels_max,
            requests_max=config.requests_max,
        ),
        partial_indices_max=config.partial_indices_max,
        progress_seconds=config.progress_seconds,
        executor=executor,
        clock=time.monotonic,
    )


def object_limits(config: ConversionConfig) -> ObjectLimits:
    """Waits and tries of what is read from buckets, and written to them."""
    return ObjectLimits(
        connect_seconds=config.object_connect_seconds,
        read_seconds=config.object_read_seconds,
        request_seconds=config.object_request_seconds,
        write_seconds=config.object_write_seconds,
        retries_max=config.object_retries_max,
        retry_seconds_max=config.object_retry_seconds_max,
    )


def slot_limits(config: ConversionConfig) -> SlotLimits:
    """Who works, and who waits for it."""
    return SlotLimits(
        running_max=config.works_running_max,
        user_running_max=config.user_works_running_max or max(1, config.works_running_max - 1),
        waiting_max=config.works_waiting_max,
        user_waiting_max=config.user_works_waiting_max,
        principal_waiting_max=config.principal_works_waiting_max,
    )


def foreign_limits(config: ConversionConfig) -> ForeignLimits:
    """Sizes of what comes in another tool's format."""
    return ForeignLimits(
        files_max=config.foreign_files_max,
        document_bytes_max=config.foreign_document_bytes_max,
        file_bytes_max=config.foreign_file_bytes_max,
        requests_max=config.requests_max,
    )


def catalogue_limits(config: ConversionConfig) -> CatalogueLimits:
    """Sizes of lists of images."""
    answer_bytes_max = config.message_bytes_max - ENVELOPE_BYTES_MAX
    return CatalogueLimits(
        page_images_max=config.list_images_max,
        page_bytes_max=min(config.list_bytes_max, answer_bytes_max),
        answer_bytes_max=answer_bytes_max,
        side_max=config.list_side_max,
        image_bytes_max=config.preview_image_bytes_max,
        kept_max=config.lists_kept_max,
        seconds_max=config.list_seconds_max,
        thumbnail_bytes_max=config.thumbnail_bytes_max,
    )


def gallery_limits(config: ConversionConfig) -> GalleryLimits:
    """Sizes of contact sheets."""
    return GalleryLimits(
        images_default=config.preview_images_default,
        images_max=config.preview_images_max,
        image_bytes_max=config.preview_image_bytes_max,
        sheet_bytes_max=config.preview_bytes_max,
        seconds_max=config.preview_seconds_max,
    )


if __name__ == "__main__":
    main()
