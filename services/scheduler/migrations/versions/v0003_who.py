"""Access tokens: which were given, and which were taken back; and who stopped a job."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply."""
    op.add_column("jobs", sa.Column("stopper", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "access_tokens",
        sa.Column("token_id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("creator", sa.Text(), nullable=False),
        sa.Column("create_time_us", sa.BigInteger(), nullable=False),
        sa.Column("expire_time_us", sa.BigInteger(), nullable=False),
        sa.Column("revoke_time_us", sa.BigInteger()),
        sa.Column("revoker", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("token_id"),
    )
    op.create_index("access_tokens_by_time", "access_tokens", ["create_time_us", "token_id"])
    op.create_index("access_tokens_by_end", "access_tokens", ["expire_time_us"])
