"""Open buckets are shared by those who have the same rights, and by nobody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from services.chassis.objects.access import ObjectLimits, S3Key
from services.chassis.objects.bucket import Buckets, Rights

RIGHTS = Rights(
    bucket="datasets",
    endpoint_url="http://127.0.0.1:9",
    region="us-east-1",
    credentials=S3Key(access_key_id="key", secret_access_key="secret"),
    anonymous=False,
    limits=ObjectLimits(),
)


def test_a_bucket_that_is_open_is_not_opened_again() -> None:
    buckets = Buckets(open_max=4)
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: buckets.open(replace(RIGHTS)), range(64)))
    assert len({id(each) for each in opened}) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"bucket": "results"},
        {"endpoint_url": "http://127.0.0.1:10"},
        {"region": "eu-central-1"},
        {"credentials": None},
        {"credentials": None, "anonymous": True},
        {"credentials": S3Key(access_key_id="key", secret_access_key="another")},
        {"credentials": S3Key(access_key_id="another", secret_access_key="secret")},
        {"credentials": S3Key(access_key_id="key", secret_access_key="secret", session_token="token")},
        {"limits": ObjectLimits(retries_max=0)},
    ],
)
def test_other_rights_never_get_a_bucket_that_was_opened_with_these(other: dict[str, object]) -> None:
    buckets = Buckets(open_max=4)
    own = buckets.open(RIGHTS)
    assert buckets.open(replace(RIGHTS, **other)) is not own  # type: ignore[arg-type]  # each has its own type
    assert buckets.open(RIGHTS) is own


def test_the_bucket_that_was_asked_for_the_longest_ago_is_let_go() -> None:
    buckets = Buckets(open_max=2)
    rights = [replace(RIGHTS, bucket=f"b{number}") for number in range(3)]
    first, second = map(buckets.open, rights[:2])
    assert buckets.open(rights[0]) is first
    buckets.open(rights[2])
    assert buckets.open(rights[0]) is first
    assert buckets.open(rights[1]) is not second
