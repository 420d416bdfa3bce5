"""What waits is kept in memory; faults are counted; runners are put aside; one scheduler at a time leads."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TO_ADOPT: dict[str, Any] = {
    "sqlite_where": sa.text("active = 0 AND adopted = 0"),
    "postgresql_where": sa.text("NOT active AND NOT adopted"),
}
WAITS_TO_RETRY: dict[str, Any] = {
    "sqlite_where": sa.text("retry_time_us IS NOT NULL"),
    "postgresql_where": sa.text("retry_time_us IS NOT NULL"),
}
IS_PUT_ASIDE: dict[str, Any] = {
    "sqlite_where": sa.text("put_aside_until_us IS NOT NULL"),
    "postgresql_where": sa.text("put_aside_until_us IS NOT NULL"),
}


def upgrade() -> None:
    """Apply."""
    op.drop_table("waiting")
    op.add_column("jobs", sa.Column("faults", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("hand_backs", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("retry_time_us", sa.BigInteger()))
    op.create_index("jobs_by_retry_time", "jobs", ["retry_time_us"], **WAITS_TO_RETRY)
    op.drop_index("attempts_to_adopt", "attempts")
    op.add_column("attempts", sa.Column("adopt_time_us", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("attempts_to_adopt", "attempts", ["adopt_time_us"], **TO_ADOPT)
    op.add_column("runners", sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runners", sa.Column("put_aside_until_us", sa.BigInteger()))
    op.add_column("runners", sa.Column("put_aside_reason", sa.Text(), nullable=False, server_default=""))
    op.create_index("runners_put_aside", "runners", ["put_aside_until_us"], **IS_PUT_ASIDE)
    op.bulk_insert(
        sa.table("counters", sa.column("name", sa.Text), sa.column("value", sa.BigInteger)),
        [{"name": "leader", "value": 0}],
    )
