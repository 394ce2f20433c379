"""How an older database becomes the newest: Alembic revisions, applied inside one transaction of the caller's.

Alembic is imported only when there is something to apply, so that an ordinary start does not pay for it.
"""

from pathlib import Path

from sqlalchemy import Connection

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision this program knows, oldest first; a test holds it equal to the files in `versions/`."""


def upgrade(connection: Connection) -> None:
    """Bring the database to the newest revision; committing (or rolling all of it back) is the caller's."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, "head")
