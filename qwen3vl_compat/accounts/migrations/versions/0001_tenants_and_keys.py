"""Tenants and their keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make both tables; names are spelled out, since a migration must not change when `tables.py` does."""
    op.create_table(
        "tenants",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'active'")),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 64", name=op.f("ck_tenants_id")),
        sa.CheckConstraint("status IN ('active', 'suspended')", name=op.f("ck_tenants_status")),
    )
    op.create_table(
        "keys",
        sa.Column("public", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("admin", sa.Boolean(create_constraint=True, name=op.f("ck_keys_admin")), nullable=False),
        sa.Column("models", sa.Text),
        sa.Column("endpoints", sa.Text),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'active'")),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("replaced_by", sa.Text),
        sa.Column("retires_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("public", name=op.f("pk_keys")),
        sa.CheckConstraint("length(public) = 12", name=op.f("ck_keys_public")),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_keys_hash")),
        sa.CheckConstraint("status IN ('active', 'revoked')", name=op.f("ck_keys_status")),
        sa.CheckConstraint("(status = 'revoked') = (revoked_at IS NOT NULL)", name=op.f("ck_keys_revoked_at")),
        sa.CheckConstraint("(replaced_by IS NULL) = (retires_at IS NULL)", name=op.f("ck_keys_retires_at")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_keys_tenant")),
        sa.ForeignKeyConstraint(["replaced_by"], ["keys.public"], name=op.f("fk_keys_replaced_by")),
    )
    op.create_index(op.f("ix_keys_tenant"), "keys", ["tenant"])


def downgrade() -> None:
    """Back to nothing."""
    op.drop_table("keys")
    op.drop_table("tenants")
