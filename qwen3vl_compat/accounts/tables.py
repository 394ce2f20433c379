"""The tables of the accounts, written so that SQLite and PostgreSQL read them alike.

Times are BIGINT milliseconds since 1970 (UTC). Lists are JSON text: NULL is "no restriction", `[]` is "none at all".
A change here needs a migration beside it: a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

COUNTS = ("text_in", "vision_in", "cached_in", "out", "reasoning", "pictures")
"""What the ledger counts of a request: tokens, and pictures (a video or a page is one)."""
PRICES = ("text_in", "vision_in", "cached_in", "out", "reasoning", "per_request")
"""What has a price."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

installation = Table(
    "installation",
    metadata,
    Column("id", Text, primary_key=True),
    Column("currency", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("length(id) = 32", name="id"),
    CheckConstraint("length(currency) = 3", name="currency"),
)
"""One row: which database this is, as its state folders know it too, and the currency of all its money."""

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'active'")),
    Column("created_at", BigInteger, nullable=False),
    Column("media", Text),
    Column("limits", Text),
    Column("moderation", Text),
    CheckConstraint("length(id) BETWEEN 1 AND 64", name="id"),
    CheckConstraint("status IN ('active', 'suspended')", name="status"),
)
"""`media`, `limits` and `moderation` are JSON text: the settings in which this tenant differs, NULL for none."""

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
    Column("limits", Text),
    CheckConstraint("length(public) = 12", name="public"),
    CheckConstraint("length(hash) = 32", name="hash"),
    CheckConstraint("status IN ('active', 'revoked')", name="status"),
    CheckConstraint("(status = 'revoked') = (revoked_at IS NOT NULL)", name="revoked_at"),
    CheckConstraint("(replaced_by IS NULL) = (retires_at IS NULL)", name="retires_at"),
)
"""`hash` is SHA-256 of the whole key; `limits` is JSON text, as a tenant's.

Rotation names the successor in `replaced_by`; until `retires_at` both work.
"""

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

processes = Table(
    "processes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("beat", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
)
"""The running servers. Each raises its `beat` again and again; one that does not for `ledger.lease` seconds is dead."""

prices = Table(
    "prices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", Text, nullable=False),
    Column("effective_from", BigInteger, nullable=False),
    Column("text_in", BigInteger, nullable=False),
    Column("vision_in", BigInteger, nullable=False),
    Column("cached_in", BigInteger, nullable=False),
    Column("out", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("per_request", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("effective_from >= 0", name="effective_from"),
    *(CheckConstraint(f"{name} BETWEEN 0 AND 1000000000000000", name=name) for name in PRICES),
)
"""Nano-units for a million tokens, and for a request. `model` is '*' for those without a price of their own.

Of rows in effect the newest holds.
"""

Index(None, prices.c.model, prices.c.effective_from)

ledger = Table(
    "ledger",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("wire", Text, nullable=False),
    Column("stream", Boolean(create_constraint=True, name="stream"), nullable=False),
    Column("state", Text, nullable=False),
    Column("finish", Text, nullable=False, server_default=text("''")),
    Column("owner", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in COUNTS),
    Column("reserved_out", BigInteger, nullable=False),
    Column("price", Integer, ForeignKey("prices.id")),
    Column("reserved", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False, server_default=text("0")),
    Column("cache", Text, nullable=False, server_default=text("'off'")),
    Column("moderation", Text, nullable=False, server_default=text("''")),
    CheckConstraint("state IN ('open', 'final', 'aborted', 'interrupted')", name="state"),
    CheckConstraint("(state = 'open') = (ended_at IS NULL)", name="ended_at"),
    *(CheckConstraint(f"{name} >= 0", name=name) for name in (*COUNTS, "reserved_out", "reserved", "cost")),
    CheckConstraint("reasoning <= out", name="reasoned"),
)
"""What every request took: one row each, never deleted, that leaves `open` once. Money is in nano-units.

`created_at` is when it was admitted: the day and month it is counted in. `owner` is the process that serves it;
the row's lease is that process's beat. `text_in` and `vision_in` are what was computed of the prompt, `cached_in` is
what was not; `reasoning` is a part of `out`. An open row holds the counts of its last checkpoint. `cache` is `off`,
`miss` or `hit`: of a hit nothing was computed, `out` is what the stored answer has. `moderation` is what moderators
had to say, empty for nothing.
"""

Index(None, ledger.c.tenant, ledger.c.created_at)
Index(None, ledger.c.key, ledger.c.created_at)
Index(None, ledger.c.created_at)
Index(None, ledger.c.owner, sqlite_where=ledger.c.state == "open", postgresql_where=ledger.c.state == "open")

daily = Table(
    "daily",
    metadata,
    Column("day", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("cache", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in COUNTS),
    Column("cost", BigInteger, nullable=False),
)
"""Sums of the ledger's rows that have left `open`, by the UTC day (2026-11-26) of `created_at`."""

spending = Table(
    "spending",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("reserved", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    CheckConstraint("reserved >= 0", name="reserved"),
    CheckConstraint("spent >= 0", name="spent"),
)
"""Money of a tenant (`tenant:acme`) or key (`key:<public>`) in a UTC day (2026-11-26) or month (2026-11).

`reserved` is the sum of its open rows' `reserved`, `spent` the sum of the others' `cost`.
"""

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("details", Text, nullable=False, server_default=text("'{}'")),
)
"""Who changed what: `actor` is an admin key's public part or `command line`; only ever added to."""

replies = Table(
    "replies",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key_hash", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("events", LargeBinary),
    CheckConstraint("length(key_hash) = 64", name="key_hash"),
    CheckConstraint("length(fingerprint) = 64", name="fingerprint"),
    CheckConstraint("state IN ('running', 'kept', 'too_large')", name="state"),
    CheckConstraint("(state = 'kept') = (events IS NOT NULL)", name="events"),
)
"""What was answered under an Idempotency-Key. `key_hash` and `fingerprint` (of the request) are SHA-256 in hexadecimal
digits, `request` the first one's id, `events` its answer as MessagePack."""

Index(None, replies.c.created_at)

responses = Table(
    "responses",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.id"), nullable=False),
    Column("previous", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("whole", BigInteger, nullable=False),
    Column("input", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    CheckConstraint("length(id) = 29", name="id"),
    CheckConstraint("expires_at >= 0", name="expires_at"),
    CheckConstraint("bytes >= 0 AND whole >= 0", name="bytes"),
)
"""Stored responses. `input` is the items that came with the request and `body` what was answered, both JSON; `bytes` is
their size as they lie here, `whole` that with media in their places. `previous` is the response that one goes on from:
its row may be gone, or another tenant's.
"""

Index(None, responses.c.tenant, responses.c.expires_at, responses.c.bytes)
Index(None, responses.c.expires_at)

response_media = Table(
    "response_media",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
    CheckConstraint("length(sha256) = 64", name="sha256"),
    CheckConstraint("bytes >= 0", name="bytes"),
)
"""Media that came inside of requests whose responses are stored, each once, by SHA-256 in hexadecimal digits."""

Index(None, response_media.c.tenant, response_media.c.bytes)

response_uses = Table(
    "response_uses",
    metadata,
    Column("response", Text, ForeignKey("responses.id"), primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    ForeignKeyConstraint(["tenant", "sha256"], ["response_media.tenant", "response_media.sha256"]),
)
"""Which response holds which medium: what none holds any more is removed with the last that did."""

Index(None, response_uses.c.tenant, response_uses.c.sha256)
