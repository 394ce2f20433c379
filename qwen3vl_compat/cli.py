"""The command `qwen3vl-compat`: serve a model, administer its accounts."""

import argparse
import base64
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import OperationalError

from qwen3vl_compat import __version__, cli_accounts
from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import DatabaseUnusable
from qwen3vl_compat.accounts.keys import KeyOver, Keys, UnknownKey, UnknownTenant
from qwen3vl_compat.accounts.ledger import LedgerUnavailable
from qwen3vl_compat.cli_doctor import add_doctor
from qwen3vl_compat.cli_options import add_config, database_of, settings_of
from qwen3vl_compat.cli_usage import add_usage
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.engines import EngineUnusable, make_engine
from qwen3vl_compat.server.log import begin_log
from qwen3vl_compat.settings import Settings, SettingsError

_REFUSALS = (
    SettingsError,
    EngineUnusable,
    DatabaseUnusable,
    LedgerUnavailable,
    UnknownTenant,
    UnknownKey,
    KeyOver,
    ValueError,
)
"""What an operator can put right, each said in one sentence."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; anything an operator can put right ends with one sentence and status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the table has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OperationalError as error:  # another process holds the lock, the disk is full or the server is gone
        reason = str(error.orig).partition("\n")[0]
        print(f"qwen3vl-compat: the database cannot be used now: {reason}", file=sys.stderr)
        sys.exit(1)
    except _REFUSALS as error:
        print(f"qwen3vl-compat: {error}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen3vl-compat", description="Qwen3-VL behind OpenAI's, Google's and Anthropic's APIs."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="start the server")
    add_config(serve)
    serve.add_argument("--model", dest="model.path", help="checkpoint folder or hub name (default: the bundled one)")
    serve.add_argument("--name", dest="model.name", help="the name clients use (default: qwen3-vl)")
    serve.add_argument("--revision", dest="model.revision", help="revision of a hub model")
    serve.add_argument("--host", dest="server.host")
    serve.add_argument("--port", dest="server.port", type=int)
    serve.add_argument("--workers", dest="server.workers", type=int, help="front processes (default: 0, all in one)")
    serve.set_defaults(run=_serve)
    cli_accounts.add_commands(commands)
    add_config(add_usage(commands, settings_of, database_of))
    add_doctor(commands)
    return parser


# ------------------------------------------------------------------------------------------------------------ serve


def _serve(options: argparse.Namespace) -> None:
    settings = settings_of(options)
    begin_log(settings.log)
    listener = _bound(settings)
    accounts = open_accounts(database_of(settings, make=True), settings)
    engine = make_engine(settings)
    print(f"Loading {settings.model.path or 'the bundled model'} ...", flush=True)

    def started() -> None:
        print(_welcome(settings, accounts.keys), flush=True)

    # The web framework is loaded by neither the commands that manage keys nor a process that only has the engine.
    with listener:
        if settings.server.workers:
            from qwen3vl_compat.server import fronts

            fronts.serve(settings, engine, listener, started)
        else:
            from qwen3vl_compat.server import run

            run.serve(settings, engine, accounts, listener, started)


def _bound(settings: Settings) -> socket.socket:
    """Where to listen; with fronts it is they who do."""
    family = socket.AF_INET6 if ":" in settings.server.host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that name TCP; with it a stream's first chunk waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.server.host, settings.server.port))
        if not settings.server.workers:
            listener.listen(2048)
    except (OSError, OverflowError):
        address = f"{settings.server.host}:{settings.server.port}"
        raise SettingsError(f"The address {address} is taken or cannot be used; choose another --port.") from None
    return listener


def _welcome(settings: Settings, keys: Keys) -> str:
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    address = f"http://{host}:{settings.server.port}"
    first = keys.ensure_first()
    lines = ["", f"qwen3vl-compat {__version__} serves '{settings.model.name}' at {address}", ""]
    if not settings.model.path:
        lines += [
            "This is the bundled demonstration model: it only reads one short line of text in a picture.",
            f"For the real one: {_program()} serve --model Qwen/Qwen3-VL-4B-Instruct",
            "",
        ]
    if first is not None:
        shown = first.model.secret_text
        lines += [
            f"API key of tenant 'default':  {first.model.secret_text}",
            f"Admin key (calls no models):  {first.admin.secret_text}",
            "They are shown this once.",
        ]
    else:
        shown = "$KEY"
        usable = [key for key in keys.list() if key.usable]
        lines += [f"Key {key.public}  tenant '{key.tenant}'{'  admin' if key.admin else ''}" for key in usable[:10]]
        lines += [f"Another key: {_program()} keys create --tenant default"]
    return "\n".join([*lines, "", "Try it:", _first_try(address, settings.model.name, shown), ""])


def _program() -> str:
    """This command as it can be typed here: an environment that is not active is not on the path."""
    here = Path(sys.executable).with_name("qwen3vl-compat")
    return "qwen3vl-compat" if shutil.which("qwen3vl-compat") or not here.exists() else os.path.relpath(here)


def _first_try(address: str, model: str, key: str) -> str:
    """A curl that has the sample picture read."""
    picture = base64.b64encode(SAMPLE.read_bytes()).decode("ascii")
    parts = (
        f'{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}},'
        '{"type":"text","text":"Read the text."}'
    )
    return (
        f'curl {address}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" '
        f'-d \'{{"model":"{model}","messages":[{{"role":"user","content":[{parts}]}}]}}\''
    )
