"""The tables of `qwen3vl.db`, written so that SQLite and PostgreSQL read them alike.

Times are BIGINT milliseconds since 1970 (UTC). Lists are JSON text: NULL is "no restriction", `[]` is "none at all".
A change here needs a migration beside it: a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'active'")),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("length(id) BETWEEN 1 AND 64", name="id"),
    CheckConstraint("status IN ('active', 'suspended')", name="status"),
)

keys = Table(
    "keys",
    metadata,
    Column("public", Text, primary_key=True),
    Column("hash", LargeBinary, nullable=False),
    Column("tenant", Text, ForeignKey("tenants.id"), nullable=False),
    Column("label", Text, nullable=False, server_default=text("''")),
    Column("admin", Boolean(create_constraint=True, name="admin"), nullable=False),
    Column("models", Text),
    Column("endpoints", Text),
    Column("status", Text, nullable=False, server_default=text("'active'")),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("replaced_by", Text, ForeignKey("keys.public")),
    Column("retires_at", BigInteger),
    CheckConstraint("length(public) = 12", name="public"),
    CheckConstraint("length(hash) = 32", name="hash"),
    CheckConstraint("status IN ('active', 'revoked')", name="status"),
    CheckConstraint("(status = 'revoked') = (revoked_at IS NOT NULL)", name="revoked_at"),
    CheckConstraint("(replaced_by IS NULL) = (retires_at IS NULL)", name="retires_at"),
)
"""`hash` is SHA-256 of the whole key. Rotation names the successor in `replaced_by`; until `retires_at` both work."""

Index(None, keys.c.tenant)
