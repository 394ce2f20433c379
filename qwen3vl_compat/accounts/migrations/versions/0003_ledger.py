"""Which database it is, limits, prices, the ledger with its sums, the audit and replies kept for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COUNTS = ("text_in", "vision_in", "cached_in", "out", "reasoning", "pictures")
_PRICES = ("text_in", "vision_in", "cached_in", "out", "reasoning", "per_request")
_RULES = {
    "ledger_kept": ("DELETE ON ledger", "", "no row of the ledger is ever deleted"),
    "ledger_closed": ("UPDATE ON ledger", "OLD.state <> 'open'", "a row of the ledger leaves open once"),
    "audit_kept": ("DELETE ON audit", "", "no row of the audit is ever deleted"),
    "audit_written": ("UPDATE ON audit", "", "no row of the audit is ever changed"),
}
"""Triggers, by name: what they stop, when, and the words they do it with."""


def upgrade() -> None:
    """Make the tables, columns and triggers; names are spelled out, as in every migration."""
    op.add_column("tenants", sa.Column("limits", sa.Text))
    op.add_column("keys", sa.Column("limits", sa.Text))
    op.create_table(
        "installation",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
        sa.CheckConstraint("length(id) = 32", name=op.f("ck_installation_id")),
        sa.CheckConstraint("length(currency) = 3", name=op.f("ck_installation_currency")),
    )
    op.create_table(
        "processes",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_processes")),
    )
    _make_prices()
    _make_ledger()
    _make_sums()
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False, server_default=sa.text("'{}'")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    _make_replies()
    for name, rule in _RULES.items():
        _forbid(name, *rule)


def _make_prices() -> None:
    op.create_table(
        "prices",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("effective_from", sa.BigInteger, nullable=False),
        sa.Column("text_in", sa.BigInteger, nullable=False),
        sa.Column("vision_in", sa.BigInteger, nullable=False),
        sa.Column("cached_in", sa.BigInteger, nullable=False),
        sa.Column("out", sa.BigInteger, nullable=False),
        sa.Column("reasoning", sa.BigInteger, nullable=False),
        sa.Column("per_request", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
        sa.CheckConstraint("effective_from >= 0", name=op.f("ck_prices_effective_from")),
        *(
            sa.CheckConstraint(f"{name} BETWEEN 0 AND 1000000000000000", name=op.f(f"ck_prices_{name}"))
            for name in _PRICES
        ),
    )
    op.create_index(op.f("ix_prices_model"), "prices", ["model", "effective_from"])


def _make_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("wire", sa.Text, nullable=False),
        sa.Column("stream", sa.Boolean(create_constraint=True, name=op.f("ck_ledger_stream")), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("finish", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        *(sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")) for name in _COUNTS),
        sa.Column("reserved_out", sa.BigInteger, nullable=False),
        sa.Column("price", sa.Integer),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_ledger_tenant")),
        sa.ForeignKeyConstraint(["price"], ["prices.id"], name=op.f("fk_ledger_price")),
        sa.CheckConstraint("state IN ('open', 'final', 'aborted', 'interrupted')", name=op.f("ck_ledger_state")),
        sa.CheckConstraint("(state = 'open') = (ended_at IS NULL)", name=op.f("ck_ledger_ended_at")),
        *(
            sa.CheckConstraint(f"{name} >= 0", name=op.f(f"ck_ledger_{name}"))
            for name in (*_COUNTS, "reserved_out", "reserved", "cost")
        ),
        sa.CheckConstraint("reasoning <= out", name=op.f("ck_ledger_reasoned")),
    )
    op.create_index(op.f("ix_ledger_tenant"), "ledger", ["tenant", "created_at"])
    op.create_index(op.f("ix_ledger_key"), "ledger", ["key", "created_at"])
    op.create_index(op.f("ix_ledger_created_at"), "ledger", ["created_at"])
    open_ones = sa.text("state = 'open'")
    op.create_index(op.f("ix_ledger_owner"), "ledger", ["owner"], sqlite_where=open_ones, postgresql_where=open_ones)


def _make_sums() -> None:
    op.create_table(
        "daily",
        *(sa.Column(name, sa.Text, nullable=False) for name in ("day", "tenant", "key", "model")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("requests", *_COUNTS, "cost")),
        sa.PrimaryKeyConstraint("day", "tenant", "key", "model", name=op.f("pk_daily")),
    )
    op.create_table(
        "spending",
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("period", sa.Text, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("scope", "period", name=op.f("pk_spending")),
        sa.CheckConstraint("reserved >= 0", name=op.f("ck_spending_reserved")),
        sa.CheckConstraint("spent >= 0", name=op.f("ck_spending_spent")),
    )


def _make_replies() -> None:
    op.create_table(
        "replies",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("events", sa.LargeBinary),
        sa.PrimaryKeyConstraint("tenant", "key_hash", name=op.f("pk_replies")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_replies_tenant")),
        sa.CheckConstraint("length(key_hash) = 64", name=op.f("ck_replies_key_hash")),
        sa.CheckConstraint("length(fingerprint) = 64", name=op.f("ck_replies_fingerprint")),
        sa.CheckConstraint("state IN ('running', 'kept', 'too_large')", name=op.f("ck_replies_state")),
        sa.CheckConstraint("(state = 'kept') = (events IS NOT NULL)", name=op.f("ck_replies_events")),
    )
    op.create_index(op.f("ix_replies_created_at"), "replies", ["created_at"])


def _forbid(name: str, what: str, when: str, words: str) -> None:
    """A trigger that refuses a change, whoever makes it."""
    head = f"CREATE TRIGGER {name} BEFORE {what}"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"{head}{f' WHEN {when}' if when else ''} BEGIN SELECT RAISE(ABORT, '{words}'); END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{words}'; END $$"
    )
    op.execute(f"{head} FOR EACH ROW{f' WHEN ({when})' if when else ''} EXECUTE FUNCTION {name}()")
    if what.startswith("DELETE"):
        op.execute(f"CREATE TRIGGER {name}_whole BEFORE {what.replace('DELETE', 'TRUNCATE')} EXECUTE FUNCTION {name}()")


def downgrade() -> None:
    """Back to files; what was counted is lost."""
    postgres = op.get_bind().dialect.name == "postgresql"
    for table in ("replies", "audit", "spending", "daily", "ledger", "prices", "processes", "installation"):
        op.drop_table(table)
    for name in _RULES if postgres else ():
        op.execute(f"DROP FUNCTION {name}()")
    op.drop_column("keys", "limits")
    op.drop_column("tenants", "limits")
