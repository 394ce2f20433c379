"""The command `qwen3vl-compat`: serve a model, manage keys and tenants."""

import argparse
import base64
import logging
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from qwen3vl_compat import __version__
from qwen3vl_compat.accounts.database import DatabaseUnusable, open_database
from qwen3vl_compat.accounts.keys import Keys, UnknownKey, UnknownTenant
from qwen3vl_compat.accounts.limits import TenantLimits
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.engines import EngineUnusable, make_engine
from qwen3vl_compat.settings import Settings, SettingsError, load_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; anything an operator can put right ends with one sentence and status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except OperationalError as error:  # another process holds the lock, the disk is full or the server is gone
        reason = str(error.orig).partition("\n")[0]
        print(f"qwen3vl-compat: the database cannot be used now: {reason}", file=sys.stderr)
        sys.exit(1)
    except (SettingsError, EngineUnusable, DatabaseUnusable, UnknownTenant, UnknownKey, ValueError) as error:
        print(f"qwen3vl-compat: {error}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwen3vl-compat", description="Qwen3-VL behind OpenAI's and Google's APIs.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="start the server")
    _add_config(serve)
    serve.add_argument("--model", dest="model.path", help="checkpoint folder or hub name (default: the bundled one)")
    serve.add_argument("--name", dest="model.name", help="the name clients use (default: qwen3-vl)")
    serve.add_argument("--revision", dest="model.revision", help="revision of a hub model")
    serve.add_argument("--host", dest="server.host")
    serve.add_argument("--port", dest="server.port", type=int)
    serve.set_defaults(run=_serve)
    keys = commands.add_parser("keys", help="create, list and revoke keys").add_subparsers(required=True)
    create = keys.add_parser("create", help="make a key and print it, once")
    create.add_argument("--tenant", default="default")
    create.add_argument("--label", default="")
    create.add_argument("--admin", action="store_true", help="a key that manages and cannot call models")
    create.set_defaults(run=_create_key)
    listing = keys.add_parser("list", help="print the keys' public parts")
    listing.set_defaults(run=_list_keys)
    revoke = keys.add_parser("revoke", help="end a key; running servers follow within 5 seconds")
    revoke.add_argument("public", help="the key's public part, or the whole key")
    revoke.set_defaults(run=_revoke_key)
    tenants = commands.add_parser("tenants", help="make tenants, and set what they may send").add_subparsers(
        required=True
    )
    make = tenants.add_parser("create", help="make a tenant")
    make.add_argument("tenant", help="its id: a-z, 0-9, - and _")
    make.add_argument("--name", default="", help="its name, for people")
    make.set_defaults(run=_create_tenant)
    differ = tenants.add_parser("set", help="give a tenant limits of its own; running servers follow within 5 seconds")
    differ.add_argument("tenant")
    differ.add_argument("limits", nargs="+", metavar="media.NAME=VALUE", help="an empty value takes a limit back")
    differ.set_defaults(run=_set_tenant)
    for command in (create, listing, revoke, make, differ):
        _add_config(command)
    return parser


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, help="a TOML file (default: $QWEN3VL_CONFIG, then ./qwen3vl.toml)")
    command.add_argument("--state-dir", dest="server.state_dir", help="where keys and accounts are kept")


def _settings(options: argparse.Namespace) -> Settings:
    flags = {name: value for name, value in vars(options).items() if "." in name}
    return load_settings(options.config, flags)


def _database(settings: Settings) -> Engine:
    folder = Path(settings.server.state_dir).expanduser()
    return open_database(folder, settings.ledger)


def _keys(settings: Settings) -> Keys:
    return Keys(_database(settings))


# ------------------------------------------------------------------------------------------------------------ serve


def _serve(options: argparse.Namespace) -> None:
    settings = _settings(options)
    logging.basicConfig(
        level=settings.log.level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    for chatty in ("uvicorn", "httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    from qwen3vl_compat.server.run import Accounts, serve  # the web framework is not loaded to manage keys

    listener = _listen(settings)
    database = _database(settings)
    keys = Keys(database)
    engine = make_engine(settings)
    print(f"Loading {settings.model.path or 'the bundled model'} ...", flush=True)
    with listener:
        accounts = Accounts(database, keys.find)
        serve(settings, engine, accounts, listener, lambda: print(_welcome(settings, keys), flush=True))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.server.host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that name TCP; with it a stream's first chunk waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.server.host, settings.server.port))
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


# ------------------------------------------------------------------------------------------------------------- keys


def _create_key(options: argparse.Namespace) -> None:
    keys = _keys(_settings(options))
    print(keys.create(options.tenant, admin=options.admin, label=options.label).secret_text)


def _list_keys(options: argparse.Namespace) -> None:
    for key in _keys(_settings(options)).list():
        made = datetime.fromtimestamp(key.created_at / 1000, UTC).date()
        kind = "admin" if key.admin else "model"
        print(
            f"{key.public}  {kind}  tenant={key.tenant}  {key.problem or 'usable'}  since {made}  {key.label}".rstrip()
        )


def _revoke_key(options: argparse.Namespace) -> None:
    public = options.public.split("-")[1] if options.public.startswith("sk-") else options.public
    _keys(_settings(options)).revoke(public)
    print(f"Key {public} is revoked; running servers follow within 5 seconds.")


# ---------------------------------------------------------------------------------------------------------- tenants


def _create_tenant(options: argparse.Namespace) -> None:
    made = _keys(_settings(options)).add_tenant(options.tenant, options.name)
    print(f"Tenant {options.tenant} {'is made' if made else 'was there already'}.")


def _set_tenant(options: argparse.Namespace) -> None:
    settings = _settings(options)
    wishes: dict[str, str] = {}
    for limit in options.limits:
        name, equals, value = limit.partition("=")
        if not equals or not name.startswith("media."):
            raise ValueError(f"A limit is given as media.NAME=VALUE; {limit!r} is not.")
        wishes[name.removeprefix("media.")] = value
    changed = TenantLimits(_database(settings), settings.media).change(options.tenant, wishes)
    for name, value in changed.items():
        print(f"media.{name}={','.join(cast('list[str]', value)) if isinstance(value, list) else str(value).lower()}")
    if not changed:
        print(f"Tenant {options.tenant} has no limits of its own.")
