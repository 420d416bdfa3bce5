"""The tables. Jobs are keyed by uid everywhere; two unique partial indexes are the promise of one active attempt each.

Nothing here is for one database alone. What a migration changes is changed here too: a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

metadata = MetaData()

projects = Table(
    "projects",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project_id", Text, nullable=False, unique=True),
    Column("display_name", Text, nullable=False),
    Column("training_dataset", JSON, nullable=False),
    Column("validation_dataset", JSON(none_as_null=True)),
    Column("create_time_us", BigInteger, nullable=False),
    Column("update_time_us", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("served", BigInteger, nullable=False),
)

# Sealed with the key of the configuration; jobs and projects hold the id.
credentials = Table(
    "credentials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_uid", Text, nullable=False, index=True),
    Column("sealed", LargeBinary, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project_uid", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("creator", Text, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("needs_key", Text, nullable=False),
    Column("iterations_max", BigInteger, nullable=False),
    Column("training_dataset", JSON, nullable=False),
    Column("validation_dataset", JSON(none_as_null=True)),
    Column("dataset_fingerprint", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("start_time_us", BigInteger),
    Column("end_time_us", BigInteger),
    Column("state", Text, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("reason_message", Text, nullable=False),
    Column("stop", Integer, nullable=False),
    Column("stop_grace_seconds", Float(53), nullable=False),
    Column("stop_deadline_us", BigInteger),
    Column("epoch", BigInteger, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("lost_attempts", Integer, nullable=False),
    Column("held", Boolean, nullable=False),
    Column("overtaken", Integer, nullable=False),
    Column("progress", JSON, nullable=False),
    Column("last_checkpoint", JSON(none_as_null=True)),
    Column("source", JSON(none_as_null=True)),
    Column("revision", BigInteger, nullable=False),
    Column("faults", Integer, nullable=False, server_default="0"),
    Column("hand_backs", Integer, nullable=False, server_default="0"),
    Column("retry_time_us", BigInteger),
    Column("stopper", Text, nullable=False, server_default=""),
    Column("avoid_until_us", BigInteger),
)


def _only_where(*, sqlite: str, postgresql: str) -> dict[str, Any]:
    """A partial index. SQLite uses it only where the condition is written as in the query: `ready = 1`, not `ready`."""
    return {"sqlite_where": text(sqlite), "postgresql_where": text(postgresql)}


_READY = _only_where(sqlite="ready = 1", postgresql="ready")
_ACTIVE = _only_where(sqlite="active = 1", postgresql="active")
_HAS_STOP_DEADLINE = _only_where(sqlite="stop_deadline_us IS NOT NULL", postgresql="stop_deadline_us IS NOT NULL")
_WAITS_TO_RETRY = _only_where(sqlite="retry_time_us IS NOT NULL", postgresql="retry_time_us IS NOT NULL")
_AVOIDS = _only_where(sqlite="avoid_until_us IS NOT NULL", postgresql="avoid_until_us IS NOT NULL")
_IS_PUT_ASIDE = _only_where(sqlite="put_aside_until_us IS NOT NULL", postgresql="put_aside_until_us IS NOT NULL")
_TO_ADOPT = _only_where(sqlite="active = 0 AND adopted = 0", postgresql="NOT active AND NOT adopted")
_IS_ALIVE = _only_where(sqlite="end_time_us IS NULL", postgresql="end_time_us IS NULL")
_GOES_ON = _only_where(sqlite="source IS NOT NULL", postgresql="source IS NOT NULL")
_NOT_LOST = _only_where(sqlite="lost = 0", postgresql="NOT lost")

Index("jobs_by_name", jobs.c.project_uid, jobs.c.job_id, unique=True)
Index("jobs_by_sequence", jobs.c.sequence, unique=True)
Index("jobs_of_project_by_sequence", jobs.c.project_uid, jobs.c.sequence)
Index("jobs_by_revision", jobs.c.revision)
Index("jobs_of_project_by_revision", jobs.c.project_uid, jobs.c.revision)
Index("jobs_by_state", jobs.c.state, jobs.c.sequence)
# The queue: the first job of a project, and the first with certain needs, are each one step into an index.
Index("queue_of_project", jobs.c.project_uid, jobs.c.priority.desc(), jobs.c.sequence, **_READY)
Index(
    "queue_of_project_by_needs",
    jobs.c.project_uid,
    jobs.c.needs_key,
    jobs.c.priority.desc(),
    jobs.c.sequence,
    **_READY,
)
Index("jobs_by_stop_deadline", jobs.c.stop_deadline_us, **_HAS_STOP_DEADLINE)
Index("jobs_by_retry_time", jobs.c.retry_time_us, **_WAITS_TO_RETRY)
Index("jobs_by_avoid_time", jobs.c.avoid_until_us, **_AVOIDS)
Index("jobs_that_go_on", jobs.c.project_uid, **_GOES_ON)
Index("living_jobs", jobs.c.project_uid, **_IS_ALIVE)

job_labels = Table(
    "job_labels",
    metadata,
    Column("job_uid", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_uid", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("project_uid", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("adopted", Boolean, nullable=False),
    Column("runner_id", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("software_version", Text, nullable=False),
    Column("from_step", BigInteger, nullable=False),
    Column("resume", JSON(none_as_null=True)),
    Column("start_time_us", BigInteger, nullable=False),
    Column("lease_expire_time_us", BigInteger, nullable=False),
    Column("progress_time_us", BigInteger, nullable=False),
    Column("phase", Text, nullable=False),
    Column("acknowledged", Boolean, nullable=False),
    Column("run_time_us", BigInteger),
    Column("end_time_us", BigInteger),
    Column("outcome", Text),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    # When its checkpoints are looked for next.
    Column("adopt_time_us", BigInteger, nullable=False, server_default="0"),
    # How far it is, which changes all the time: here, and not in its job, whose every change has a revision.
    Column("progress", JSON, nullable=False, server_default="{}"),
)
Index("one_active_attempt_per_project", attempts.c.project_uid, unique=True, **_ACTIVE)
Index("one_active_attempt_per_runner", attempts.c.runner_id, unique=True, **_ACTIVE)
Index("attempts_by_epoch", attempts.c.job_uid, attempts.c.epoch, unique=True)
Index("active_attempts_by_lease", attempts.c.lease_expire_time_us, **_ACTIVE)
Index("attempts_to_adopt", attempts.c.adopt_time_us, **_TO_ADOPT)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_uid", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("iteration", BigInteger, primary_key=True),
    Column("uri", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("cause", Text, nullable=False),
    Column("files", JSON, nullable=False),
    Column("selection_value", Float(53)),
    Column("best", Boolean, nullable=False),
)

runners = Table(
    "runners",
    metadata,
    Column("runner_id", Text, primary_key=True),
    Column("session", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("capabilities", JSON, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("drain_asked", Boolean, nullable=False),
    Column("lost", Boolean, nullable=False),
    Column("heartbeat_time_us", BigInteger, nullable=False),
    Column("replaced", JSON, nullable=False),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("put_aside_until_us", BigInteger),
    Column("put_aside_reason", Text, nullable=False, server_default=""),
)
Index("runners_put_aside", runners.c.put_aside_until_us, **_IS_PUT_ASIDE)
Index("runners_by_heartbeat", runners.c.heartbeat_time_us, **_NOT_LOST)

request_ids = Table(
    "request_ids",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("create_time_us", BigInteger, nullable=False, index=True),
)

# Deleted jobs, for those who watch.
removed_jobs = Table(
    "removed_jobs",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("uid", Text, nullable=False),
    Column("project_uid", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False, index=True),
)

# Tokens that were given, and those that were taken back, known or not; never a token's text.
access_tokens = Table(
    "access_tokens",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("is_admin", Boolean, nullable=False),
    Column("roles", JSON, nullable=False),
    Column("description", Text, nullable=False),
    Column("creator", Text, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    Column("expire_time_us", BigInteger, nullable=False),
    Column("revoke_time_us", BigInteger),
    Column("revoker", Text, nullable=False),
)
Index("access_tokens_by_time", access_tokens.c.create_time_us, access_tokens.c.token_id)
Index("access_tokens_by_end", access_tokens.c.expire_time_us)

# SQLite counts by itself only in an INTEGER key.
_Position = BigInteger().with_variant(Integer, "sqlite")

outbox = Table(
    "outbox",
    metadata,
    Column("position", _Position, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("create_time_us", BigInteger, nullable=False, index=True),
)

# `revision`: the last one that was given. `oldest_cursor`: the lowest revision that a watch can go on from. `leader`:
# how often a scheduler has begun to write; only the one that has this number may. `restored_sequence`,
# `restored_epoch`: see `restored`; there where a backup was put back.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
