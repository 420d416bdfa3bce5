"""The conversion service's settings: flags and `SIHLAI_CONVERSION_…` variables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.config import ServerConfig, setting

PREFIX = "SIHLAI_CONVERSION_"


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(ServerConfig):
    """What may be read, where results go, and how much is done at once."""

    store_uri: str = setting(help="where converted datasets and indices are kept: file:///… or s3://…")
    store_endpoint_url: str = setting("", "the S3-compatible server of the store; empty is AWS itself")
    allowed_roots: tuple[Path, ...] = setting(
        (), "folders that file:// datasets may lie in; the store's own always may"
    )
    allowed_endpoint_hosts: tuple[str, ...] = setting((), "hosts that a dataset's endpoint_url may name")
    nats_url: str | None = setting(None, "the event bus; without it converted datasets are not announced")

    works_running_max: int = setting(4, "inspections, validations and conversions at once", units="calls", minimum=1)
    works_waiting_max: int = setting(256, "calls that wait for their turn", units="calls", minimum=0)
    threads_max: int = setting(4, "threads that read headers and annotations", units="threads", minimum=1)
    requests_max: int = setting(16, "images of a dataset that are read at once", units="requests", minimum=1)
    progress_seconds: float = setting(0.5, "progress is told at most this often", units="s", minimum=0.01)

    images_max: int = setting(10_000_000, "images of a dataset", units="images", minimum=1)
    image_bytes_max: int = setting(256 * 2**20, "size of an image file", units="bytes", minimum=1)
    image_pixels_max: int = setting(250_000_000, "pixels of an image", units="pixels", minimum=1)
    annotation_bytes_max: int = setting(256 * 2**20, "all annotations of a set together", units="bytes", minimum=1)
    findings_max: int = setting(1_000, "findings that are sent; the rest is counted", units="findings", minimum=1)
    partial_indices_max: int = setting(
        8, "indices in work that are kept when a caller leaves", units="indices", minimum=0
    )
