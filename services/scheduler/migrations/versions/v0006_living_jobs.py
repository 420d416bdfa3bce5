"""Whether a project has a job that has not ended is found without looking at all of its jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply."""
    is_alive = sa.text("end_time_us IS NULL")
    op.create_index("living_jobs", "jobs", ["project_uid"], sqlite_where=is_alive, postgresql_where=is_alive)
