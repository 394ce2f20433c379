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
    Column("media", Text),
    CheckConstraint("length(id) BETWEEN 1 AND 64", name="id"),
    CheckConstraint("status IN ('active', 'suspended')", name="status"),
)
"""`media` is JSON text: the media settings in which this tenant differs, NULL for none."""

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

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("declared_type", Text, nullable=False, server_default=text("''")),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    CheckConstraint("length(id) = 29", name="id"),
    CheckConstraint("bytes >= 0", name="bytes"),
    CheckConstraint("length(sha256) = 64", name="sha256"),
    CheckConstraint("expires_at >= 0", name="expires_at"),
    CheckConstraint("status IN ('storing', 'ready', 'deleting')", name="status"),
)
"""`key` is the public part of the key it came with; `mime_type` is what the bytes are, `declared_type` what was said.

Only a `ready` file is shown: one in the states before and after has a row so that its bytes are never forgotten.
"""

Index(None, files.c.tenant, files.c.id)
Index(None, files.c.expires_at)

uploads = Table(
    "uploads",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("declared_type", Text, nullable=False, server_default=text("''")),
    Column("size", BigInteger, nullable=False),
    Column("received", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    CheckConstraint("length(token_hash) = 64", name="token_hash"),
    CheckConstraint("size >= 0", name="size"),
    CheckConstraint("received >= 0 AND received <= size", name="received"),
    CheckConstraint("expires_at >= 0", name="expires_at"),
)
"""Uploads under way. `size` is the most that may come: it counts against the tenant's quota from the start.

`token_hash` is SHA-256, in hexadecimal digits, of the token that is the upload's address.
"""

Index(None, uploads.c.tenant)
Index(None, uploads.c.expires_at)
