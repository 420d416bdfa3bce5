"""A job keeps away from the runners that failed with it for a time, and not for as long as another one is there."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply. Who keeps away now may go where it likes."""
    op.add_column("jobs", sa.Column("avoid_until_us", sa.BigInteger()))
    op.execute("UPDATE jobs SET avoid_until_us = 0 WHERE end_time_us IS NULL AND needs_key LIKE '%!%'")
    avoids = sa.text("avoid_until_us IS NOT NULL")
    op.create_index("jobs_by_avoid_time", "jobs", ["avoid_until_us"], sqlite_where=avoids, postgresql_where=avoids)
