"""What goes on from other jobs is found without looking at all jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply."""
    goes_on = sa.text("source IS NOT NULL")
    op.create_index("jobs_that_go_on", "jobs", ["project_uid"], sqlite_where=goes_on, postgresql_where=goes_on)
