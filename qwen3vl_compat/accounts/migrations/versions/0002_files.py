"""Uploaded files, uploads under way, and the media settings of a tenant."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make both tables and the column; names are spelled out, as in every migration."""
    op.add_column("tenants", sa.Column("media", sa.Text))
    op.create_table(
        "files",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("mime_type", sa.Text, nullable=False),
        sa.Column("declared_type", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.CheckConstraint("length(id) = 29", name=op.f("ck_files_id")),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_files_bytes")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_files_sha256")),
        sa.CheckConstraint("expires_at >= 0", name=op.f("ck_files_expires_at")),
        sa.CheckConstraint("status IN ('storing', 'ready', 'deleting')", name=op.f("ck_files_status")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_files_tenant")),
    )
    op.create_index(op.f("ix_files_tenant"), "files", ["tenant", "id"])
    op.create_index(op.f("ix_files_expires_at"), "files", ["expires_at"])
    op.create_table(
        "uploads",
        sa.Column("token_hash", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("declared_type", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("received", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_uploads")),
        sa.CheckConstraint("length(token_hash) = 64", name=op.f("ck_uploads_token_hash")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_uploads_size")),
        sa.CheckConstraint("received >= 0 AND received <= size", name=op.f("ck_uploads_received")),
        sa.CheckConstraint("expires_at >= 0", name=op.f("ck_uploads_expires_at")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_uploads_tenant")),
    )
    op.create_index(op.f("ix_uploads_tenant"), "uploads", ["tenant"])
    op.create_index(op.f("ix_uploads_expires_at"), "uploads", ["expires_at"])


def downgrade() -> None:
    """Back to tenants and keys."""
    op.drop_table("uploads")
    op.drop_table("files")
    op.drop_column("tenants", "media")
