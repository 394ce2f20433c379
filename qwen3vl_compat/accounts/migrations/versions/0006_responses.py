"""Stored responses, and the media that came inside of their requests."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "responses",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("previous", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("whole", sa.BigInteger, nullable=False),
        sa.Column("input", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_responses")),
        sa.CheckConstraint("length(id) = 29", name=op.f("ck_responses_id")),
        sa.CheckConstraint("expires_at >= 0", name=op.f("ck_responses_expires_at")),
        sa.CheckConstraint("bytes >= 0 AND whole >= 0", name=op.f("ck_responses_bytes")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_responses_tenant")),
    )
    op.create_index(op.f("ix_responses_tenant"), "responses", ["tenant", "expires_at", "bytes"])
    op.create_index(op.f("ix_responses_expires_at"), "responses", ["expires_at"])
    op.create_table(
        "response_media",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "sha256", name=op.f("pk_response_media")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_response_media_sha256")),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_response_media_bytes")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_response_media_tenant")),
    )
    op.create_index(op.f("ix_response_media_tenant"), "response_media", ["tenant", "bytes"])
    op.create_table(
        "response_uses",
        sa.Column("response", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("response", "sha256", name=op.f("pk_response_uses")),
        sa.ForeignKeyConstraint(["response"], ["responses.id"], name=op.f("fk_response_uses_response")),
        sa.ForeignKeyConstraint(
            ["tenant", "sha256"],
            ["response_media.tenant", "response_media.sha256"],
            name=op.f("fk_response_uses_tenant"),
        ),
    )
    op.create_index(op.f("ix_response_uses_tenant"), "response_uses", ["tenant", "sha256"])


def downgrade() -> None:
    """Without them; what was stored is lost."""
    op.drop_table("response_uses")
    op.drop_table("response_media")
    op.drop_table("responses")
