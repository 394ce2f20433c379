"""What is written to standard error, by every process of the server in the same way."""

import logging
import sys

from qwen3vl_compat.settings import LogSettings


def begin_log(settings: LogSettings) -> None:
    """Write the log from now on."""
    logging.basicConfig(
        level=settings.level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    for chatty in ("uvicorn", "httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
