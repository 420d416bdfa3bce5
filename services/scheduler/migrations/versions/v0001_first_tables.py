"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

READY: dict[str, Any] = {"sqlite_where": sa.text("ready = 1"), "postgresql_where": sa.text("ready")}
ACTIVE: dict[str, Any] = {"sqlite_where": sa.text("active = 1"), "postgresql_where": sa.text("active")}
HAS_STOP_DEADLINE: dict[str, Any] = {
    "sqlite_where": sa.text("stop_deadline_us IS NOT NULL"),
    "postgresql_where": sa.text("stop_deadline_us IS NOT NULL"),
}
TO_ADOPT: dict[str, Any] = {
    "sqlite_where": sa.text("active = 0 AND adopted = 0"),
    "postgresql_where": sa.text("NOT active AND NOT adopted"),
}
NOT_LOST: dict[str, Any] = {"sqlite_where": sa.text("lost = 0"), "postgresql_where": sa.text("NOT lost")}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "attempts",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("project_uid", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("adopted", sa.Boolean(), nullable=False),
        sa.Column("runner_id", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("software_version", sa.Text(), nullable=False),
        sa.Column("from_step", sa.BigInteger(), nullable=False),
        sa.Column("resume", sa.JSON(none_as_null=True)),
        sa.Column("start_time_us", sa.BigInteger(), nullable=False),
        sa.Column("lease_expire_time_us", sa.BigInteger(), nullable=False),
        sa.Column("progress_time_us", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("acknowledged", sa.Boolean(), nullable=False),
        sa.Column("run_time_us", sa.BigInteger()),
        sa.Column("end_time_us", sa.BigInteger()),
        sa.Column("outcome", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_uid", "number"),
    )
    op.create_index(
        "active_attempts_by_lease",
        "attempts",
        ["lease_expire_time_us"],
        **ACTIVE,
    )
    op.create_index("attempts_by_epoch", "attempts", ["job_uid", "epoch"], unique=True)
    op.create_index(
        "attempts_to_adopt",
        "attempts",
        ["end_time_us"],
        **TO_ADOPT,
    )
    op.create_index(
        "one_active_attempt_per_project",
        "attempts",
        ["project_uid"],
        unique=True,
        **ACTIVE,
    )
    op.create_index(
        "one_active_attempt_per_runner",
        "attempts",
        ["runner_id"],
        unique=True,
        **ACTIVE,
    )
    op.create_table(
        "checkpoints",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("iteration", sa.BigInteger(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("selection_value", sa.Float(precision=53)),
        sa.Column("best", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("job_uid", "epoch", "iteration"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "credentials",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_uid", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_credentials_project_uid", "credentials", ["project_uid"])
    op.create_table(
        "job_labels",
        sa.Column("job_uid", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_uid", "key"),
    )
    op.create_table(
        "jobs",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project_uid", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("needs_key", sa.Text(), nullable=False),
        sa.Column("iterations_max", sa.BigInteger(), nullable=False),
        sa.Column("training_dataset", sa.JSON(), nullable=False),
        sa.Column("validation_dataset", sa.JSON(none_as_null=True)),
        sa.Column("dataset_fingerprint", sa.Text(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("start_time_us", sa.BigInteger()),
        sa.Column("end_time_us", sa.BigInteger()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("ready", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reason_message", sa.Text(), nullable=False),
        sa.Column("stop", sa.Integer(), nullable=False),
        sa.Column("stop_grace_seconds", sa.Float(precision=53), nullable=False),
        sa.Column("stop_deadline_us", sa.BigInteger()),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("lost_attempts", sa.Integer(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("overtaken", sa.Integer(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("last_checkpoint", sa.JSON(none_as_null=True)),
        sa.Column("source", sa.JSON(none_as_null=True)),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    op.create_index("jobs_by_name", "jobs", ["project_uid", "job_id"], unique=True)
    op.create_index("jobs_by_revision", "jobs", ["revision"])
    op.create_index("jobs_by_sequence", "jobs", ["sequence"], unique=True)
    op.create_index("jobs_by_state", "jobs", ["state", "sequence"])
    op.create_index(
        "jobs_by_stop_deadline",
        "jobs",
        ["stop_deadline_us"],
        **HAS_STOP_DEADLINE,
    )
    op.create_index("jobs_of_project_by_revision", "jobs", ["project_uid", "revision"])
    op.create_index("jobs_of_project_by_sequence", "jobs", ["project_uid", "sequence"])
    op.create_index(
        "queue_of_project",
        "jobs",
        ["project_uid", sa.literal_column("priority DESC"), "sequence"],
        **READY,
    )
    op.create_index(
        "queue_of_project_by_needs",
        "jobs",
        ["project_uid", "needs_key", sa.literal_column("priority DESC"), "sequence"],
        **READY,
    )
    op.create_table(
        "outbox",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("position"),
    )
    op.create_index("ix_outbox_create_time_us", "outbox", ["create_time_us"])
    op.create_table(
        "projects",
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("training_dataset", sa.JSON(), nullable=False),
        sa.Column("validation_dataset", sa.JSON(none_as_null=True)),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("update_time_us", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("served", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("project_id"),
    )
    op.create_table(
        "removed_jobs",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("project_uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("revision"),
    )
    op.create_index("ix_removed_jobs_create_time_us", "removed_jobs", ["create_time_us"])
    op.create_table(
        "request_ids",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("ix_request_ids_create_time_us", "request_ids", ["create_time_us"])
    op.create_table(
        "runners",
        sa.Column("runner_id", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("drain_asked", sa.Boolean(), nullable=False),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.Column("heartbeat_time_us", sa.BigInteger(), nullable=False),
        sa.Column("replaced", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("runner_id"),
    )
    op.create_index(
        "runners_by_heartbeat",
        "runners",
        ["heartbeat_time_us"],
        **NOT_LOST,
    )
    op.create_table(
        "waiting",
        sa.Column("project_uid", sa.Text(), nullable=False),
        sa.Column("needs_key", sa.Text(), nullable=False),
        sa.Column("served", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_uid", "needs_key"),
    )
    op.create_index("waiting_by_needs", "waiting", ["needs_key", "served", "project_uid"])
    op.bulk_insert(
        sa.table("counters", sa.column("name", sa.Text), sa.column("value", sa.BigInteger)),
        [{"name": "revision", "value": 0}, {"name": "oldest_cursor", "value": 0}],
    )
