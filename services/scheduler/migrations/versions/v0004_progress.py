"""How far an attempt is stands beside it, and not in its job, whose every change has a revision."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply."""
    op.add_column("attempts", sa.Column("progress", sa.JSON(), nullable=False, server_default="{}"))
    of_job = "(SELECT jobs.progress FROM jobs WHERE jobs.uid = attempts.job_uid)"
    op.execute(f"UPDATE attempts SET progress = {of_job} WHERE active")  # noqa: S608  # no value comes in
