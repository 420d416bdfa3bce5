"""The conversion service's settings: flags and `SIHLAI_CONVERSION_…` variables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import ServerConfig, setting
from services.chassis.image import PIXELS_MAX

PREFIX = "SIHLAI_CONVERSION_"


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(ServerConfig):
    """What may be read, where results go, and how much is done at once."""

    store_uri: str = setting(help="where converted datasets and indices are kept: file:///…, s3://…, gs://… or az://…")
    token_public_keys: tuple[Path, ...] = setting(
        help="public keys (PEM) of who signs tokens; a folder means *.pub.pem"
    )
    scheduler_address: str | None = setting(
        None, "the scheduler, which knows the revoked tokens; without one each holds until it ends", units="host:port"
    )
    store_endpoint_url: str = setting("", "the S3-compatible server of the store; empty is AWS itself")
    allowed_roots: tuple[Path, ...] = setting(
        (), "folders that file:// datasets may lie in; the store's own always may"
    )
    closed_roots: tuple[Path, ...] = setting(
        (), "folders among these that no dataset is read from, such as the installation's own data; the store still is"
    )
    allowed_endpoint_hosts: tuple[str, ...] = setting((), "hosts that a dataset's endpoint_url may name")
    own_credentials_uris: tuple[str, ...] = setting(
        (),
        "uris of buckets that are read with the service's own credentials where a request has none; so is the store",
    )
    allowed_destination_roots: tuple[Path, ...] = setting(
        (), "folders that datasets may be written to at a caller's wish"
    )
    closed_destination_roots: tuple[Path, ...] = setting(
        (), "folders among these that no dataset is written to, such as the installation's own data; as is the store"
    )
    nats_ca_file: Path | None = setting(None, "authority of NATS's certificate, for a url that begins with tls://")
    nats_credentials_file: Path | None = setting(None, "file with NATS's user and password, on two lines")
    nats_url: str | None = setting(None, "the event bus; without it converted datasets are not announced")

    principal_calls_max: int = setting(64, "calls at once of one user, streams not counted", units="calls", minimum=1)
    principal_streams_max: int = setting(64, "streams at once of one user", units="streams", minimum=1)
    works_running_max: int = setting(4, "inspections, validations and conversions at once", units="calls", minimum=1)
    user_works_running_max: int | None = setting(
        None, "the same of users; without it one less, so that one is left for runners", units="calls", minimum=1
    )
    works_waiting_max: int = setting(512, "calls that wait for their turn", units="calls", minimum=0)
    user_works_waiting_max: int = setting(384, "the same of users; the rest is for runners", units="calls", minimum=0)
    principal_works_waiting_max: int = setting(
        64, "the same of one user, so that one leaves room for others", units="calls", minimum=0
    )
    threads_max: int = setting(4, "threads that read headers and annotations", units="threads", minimum=1)
    workers_max: int | None = setting(
        None, "processes that read and write maps; without it one for each core", units="processes", minimum=1
    )
    requests_max: int = setting(16, "files of a dataset that are read or written at once", units="requests", minimum=1)
    progress_seconds: float = setting(0.5, "progress is told at most this often", units="s", minimum=0.01)

    buckets_max: int = setting(
        32, "buckets that are kept open, each with the rights of those who use it", units="buckets", minimum=1
    )
    object_connect_seconds: float = setting(5.0, "waiting for a connection to a bucket", units="s", minimum=0.01)
    object_read_seconds: float = setting(
        30.0, "how long a transfer from a bucket may stand still", units="s", minimum=0.01
    )
    object_request_seconds: float = setting(
        3_600.0, "one request that reads a bucket, with its whole body", units="s", minimum=0.01
    )
    object_write_seconds: float = setting(
        300.0, "one request that writes to a bucket, such as a part of a large file", units="s", minimum=0.01
    )
    object_retries_max: int = setting(4, "how often a request to a bucket is tried again", units="times", minimum=0)
    object_retry_seconds_max: float = setting(
        30.0, "after this long a request to a bucket is not tried again", units="s", minimum=0
    )

    images_max: int = setting(10_000_000, "images of a dataset", units="images", minimum=1)
    image_bytes_max: int = setting(256 * 2**20, "size of an image file", units="bytes", minimum=1)
    image_pixels_max: int = setting(PIXELS_MAX, "pixels of an image; trainers read no more", units="pixels", minimum=1)
    annotation_bytes_max: int = setting(256 * 2**20, "all annotations of a set together", units="bytes", minimum=1)
    preview_images_default: int = setting(8, "images on a contact sheet", units="images", minimum=1)
    preview_images_max: int = setting(24, "images on a contact sheet that was asked for", units="images", minimum=1)
    preview_image_bytes_max: int = setting(
        64 * 2**20, "larger image files are not shown on a contact sheet", units="bytes", minimum=1
    )
    preview_bytes_max: int = setting(3 * 2**20, "size of a contact sheet's file", units="bytes", minimum=2**16)
    preview_seconds_max: float = setting(
        20.0, "a conversion waits so long for its contact sheet, then goes without", units="s", minimum=0
    )
    list_images_max: int = setting(200, "images on a page of a list", units="images", minimum=1)
    list_bytes_max: int = setting(
        3 * 2**20,
        "size of such a page; clients take 4 MiB when nobody tells them otherwise",
        units="bytes",
        minimum=2**12,
    )
    list_side_max: int = setting(4_096, "the longer side of a picture of an image", units="pixels", minimum=1)
    lists_kept_max: int = setting(4, "datasets whose images are listed that are kept in memory", units="datasets")
    list_seconds_max: float = setting(
        60.0, "so long a dataset is listed as it was, without being looked at again", units="s", minimum=0
    )
    thumbnail_bytes_max: int = setting(
        64 * 2**20, "all pictures of images together that are kept in memory", units="bytes", minimum=0
    )
    foreign_files_max: int = setting(
        20_000_000, "files of a dataset in another tool's format", units="files", minimum=1
    )
    foreign_document_bytes_max: int = setting(
        2**30, "a document of a dataset in another tool's format, such as COCO's JSON", units="bytes", minimum=1
    )
    foreign_file_bytes_max: int = setting(
        64 * 2**20, "one image's annotations in another tool's format", units="bytes", minimum=1
    )
    findings_max: int = setting(1_000, "findings that are sent; the rest is counted", units="findings", minimum=1)
    partial_indices_max: int = setting(
        8, "indices in work that are kept when a caller leaves", units="indices", minimum=0
    )

    draft_hours_max: float = setting(
        48.0, "interrupted conversions that nobody takes up are removed after this", units="h", minimum=0.1
    )
    datasets_days_max: float = setting(
        30.0, "converted datasets that nobody uses are removed after this", units="d", minimum=0.1
    )
    indices_days_max: float = setting(
        30.0, "indices of images that nobody uses are removed after this", units="d", minimum=0.1
    )
    upload_minutes_max: float = setting(
        60.0,
        "an upload to a caller's bucket that has stood still for so long is over: another one may remove what it left",
        units="min",
        minimum=0.1,
    )
    destination_free_bytes_min: int = setting(
        16 * 2**20, "room that a destination must have beside what images take", units="bytes", minimum=0
    )
    sweep_minutes: float = setting(60.0, "how often it is looked for what is to be removed", units="min", minimum=0.1)
