"""How connections to our services behave, whoever opens them: keepalive, retries, sizes, coming back after a break."""

from __future__ import annotations

import json
from typing import Any

KEEPALIVE_SECONDS = 20.0
KEEPALIVE_TIMEOUT_SECONDS = 10.0
MESSAGE_BYTES_MAX = 16 * 2**20
RETRY_ATTEMPTS_MAX = 4
RETRY_SECONDS_FIRST = 0.1
RETRY_SECONDS_MAX = 2.0
RECONNECT_SECONDS_MAX = 2.0
CONNECT_SECONDS_MAX = 10.0
"""A connection may take so long to come to be: the other side is far away, or slow."""


def channel_options(
    *,
    keepalive_seconds: float = KEEPALIVE_SECONDS,
    keepalive_timeout_seconds: float = KEEPALIVE_TIMEOUT_SECONDS,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    retry_attempts_max: int = RETRY_ATTEMPTS_MAX,
) -> list[tuple[str, Any]]:
    """Options of gRPC for a channel of either kind.

    A call that meets UNAVAILABLE before its first answer is sent again, `retry_attempts_max` times in all (gRPC allows
    5 at most): every mutation of ours carries a request id or a sequence number, so a repeat does no harm.
    """
    retry = {
        "maxAttempts": retry_attempts_max,
        "initialBackoff": f"{RETRY_SECONDS_FIRST}s",
        "maxBackoff": f"{RETRY_SECONDS_MAX}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    service_config = {"methodConfig": [{"name": [{}], "retryPolicy": retry}]} if retry_attempts_max > 1 else {}
    return [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.keepalive_time_ms", milliseconds(keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", milliseconds(keepalive_timeout_seconds)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.initial_reconnect_backoff_ms", milliseconds(RETRY_SECONDS_FIRST)),
        # Not a pause, in spite of its name: a connection that is not there by then is given up.
        ("grpc.min_reconnect_backoff_ms", milliseconds(CONNECT_SECONDS_MAX)),
        ("grpc.max_reconnect_backoff_ms", milliseconds(RECONNECT_SECONDS_MAX)),
        # Our services are reached directly; a proxy for web pages in the environment must not get between.
        ("grpc.enable_http_proxy", 0),
    ]


def milliseconds(seconds: float) -> int:
    """What gRPC's options count in."""
    return round(seconds * 1000)
