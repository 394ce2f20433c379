"""What the cache and the moderators had to do with a request, and a tenant's own terms of moderation."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Two columns of the ledger, rows from before them had neither; and one of the tenants."""
    op.add_column("ledger", sa.Column("cache", sa.Text, nullable=False, server_default=sa.text("'off'")))
    op.add_column("ledger", sa.Column("moderation", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("tenants", sa.Column("moderation", sa.Text))


def downgrade() -> None:
    """Without them; what they held is lost."""
    op.drop_column("tenants", "moderation")
    op.drop_column("ledger", "moderation")
    op.drop_column("ledger", "cache")
