"""The daily sums keep apart what the cache had to do with a request: what it gave again has another price."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_WHOSE = ("day", "tenant", "key", "model")
_SUMS = ("requests", "text_in", "vision_in", "cached_in", "out", "reasoning", "pictures", "cost")


def upgrade() -> None:
    """A table with one column more in its key, since SQLite changes no key; what was summed before counts as `off`."""
    _exchange((*_WHOSE, "cache"), f"SELECT {', '.join(_WHOSE)}, 'off', {', '.join(_SUMS)} FROM daily_old")  # noqa: S608 -- names of columns


def downgrade() -> None:
    """The sums of all together."""
    sums = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in _SUMS)
    whose = ", ".join(_WHOSE)
    _exchange(_WHOSE, f"SELECT {whose}, {sums} FROM daily_old GROUP BY {whose}")  # noqa: S608 -- names of columns


def _exchange(whose: tuple[str, ...], what: str) -> None:
    """Another table `daily`, with this key, filled with what a query finds in the one before, which is `daily_old`."""
    op.rename_table("daily", "daily_old")
    if op.get_bind().dialect.name == "postgresql":  # where the names of keys are the database's, not the table's
        op.execute("ALTER TABLE daily_old RENAME CONSTRAINT pk_daily TO pk_daily_old")
    op.create_table(
        "daily",
        *(sa.Column(name, sa.Text, nullable=False) for name in whose),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint(*whose, name=op.f("pk_daily")),
    )
    op.execute(f"INSERT INTO daily ({', '.join((*whose, *_SUMS))}) {what}")
    op.drop_table("daily_old")
