"""The commands `keys`, `tenants`, `prices` and `audit`: they write the database, and running servers follow."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from qwen3vl_compat.accounts.books import Accounts, open_accounts
from qwen3vl_compat.accounts.differences import checked
from qwen3vl_compat.accounts.endpoints import ENDPOINTS
from qwen3vl_compat.accounts.key import Key
from qwen3vl_compat.accounts.money import Price, format_amount
from qwen3vl_compat.accounts.prices import Amounts
from qwen3vl_compat.accounts.tables import PRICES
from qwen3vl_compat.accounts.tenants import FORMS, Tenant, TenantExists
from qwen3vl_compat.accounts.terms import Terms
from qwen3vl_compat.cli_options import (
    add_config,
    database_of,
    day_of,
    parse_end,
    parse_limit,
    parse_scope,
    parse_span,
    parse_time,
    print_table,
    second_of,
    settings_of,
)
from qwen3vl_compat.settings import Quotas

Commands = Any
"""What argparse adds commands to; its own type has no public name."""
Run = Callable[[argparse.Namespace], None]


def add_commands(commands: Commands) -> None:
    """Add the four groups of commands."""
    _add_keys(commands.add_parser("keys", help="make, show, change and end keys").add_subparsers(required=True))
    _add_tenants(commands.add_parser("tenants", help="make, show and change tenants").add_subparsers(required=True))
    _add_prices(commands.add_parser("prices", help="set and show prices").add_subparsers(required=True))
    audit = commands.add_parser("audit", help="show who changed what").add_subparsers(required=True)
    listing = _command(audit, "list", "the newest changes first", _list_audit)
    listing.add_argument("--last", type=int, default=50, help="how many (default: 50)")


def _command(commands: Commands, name: str, text: str, run: Run) -> argparse.ArgumentParser:
    command = cast("argparse.ArgumentParser", commands.add_parser(name, help=text))
    command.set_defaults(run=run)
    add_config(command)
    return command


def _accounts(options: argparse.Namespace) -> Accounts:
    settings = settings_of(options)
    return open_accounts(database_of(settings), settings, served=False)


# --------------------------------------------------------------------------------------------------------------- keys


def _add_keys(commands: Commands) -> None:
    create = _command(commands, "create", "make a key and print it, once", _create_key)
    create.add_argument("--tenant", default="default")
    create.add_argument("--admin", action="store_true", help="a key that manages and cannot call models")
    change = _command(commands, "set", "change a key; running servers follow within 5 seconds", _set_key)
    for command in (create, change):
        _add_terms(command)
    listing = _command(commands, "list", "show keys by their public parts", _list_keys)
    listing.add_argument("--tenant")
    rotate = _command(commands, "rotate", "make a key's successor and print it, once", _rotate_key)
    rotate.add_argument("--grace", type=parse_span, required=True, help="how long the old one still works, as 24h")
    revoke = _command(commands, "revoke", "end a key; running servers follow within 5 seconds", _revoke_key)
    for command in (change, rotate, revoke):
        command.add_argument("public", type=_public, help="the key's public part, or the whole key")


def _add_terms(command: argparse.ArgumentParser) -> None:
    """Options are absent unless given, so that what is not named stays."""
    command.argument_default = argparse.SUPPRESS
    command.add_argument("--label")
    command.add_argument("--expires", dest="expires_at", type=parse_end, help="30d, 2027-01-31 (its beginning), never")
    command.add_argument("--models", type=parse_scope, help="names between commas, or all")
    command.add_argument("--endpoints", type=parse_scope, help=f"of {', '.join(ENDPOINTS)}, or all")
    requests = command.add_mutually_exclusive_group()
    requests.add_argument("--requests", type=_words, help="as '60/minute;1000/day'; none lifts it, as every limit")
    requests.add_argument("--rpm", dest="requests", metavar="N", type=_a_minute, help="requests a minute")
    limits = ("tpm", "tokens"), ("tpm-in", "tokens_in"), ("tpm-out", "tokens_out")
    for flag, name in (*limits, ("pictures-per-day", "pictures"), ("concurrent", "concurrent")):
        command.add_argument(f"--{flag}", dest=name, metavar="N", type=parse_limit)
    command.add_argument("--budget", type=_words, help="as '0.50/day;5.00/month'")


def _public(text: str) -> str:
    return text.split("-")[1] if text.startswith("sk-") else text


def _words(text: str) -> str:
    return "" if text == "none" else text


def _a_minute(text: str) -> str:
    most = parse_limit(text)
    return "" if most is None else f"{most}/minute"


def _terms(options: argparse.Namespace, limits: Quotas) -> Terms:
    """What the options name, `limits` being those that the key has."""
    given = vars(options)
    terms = {name: given[name] for name in Terms.__annotations__ if name in given}
    wishes = {name: given[name] for name in Quotas.__struct_fields__ if name in given}
    if wishes:
        terms["limits"] = Quotas(**checked("limits", Quotas, msgspec.structs.asdict(limits) | wishes))
    return cast("Terms", terms)


def _create_key(options: argparse.Namespace) -> None:
    terms = _terms(options, Quotas())
    print(_accounts(options).keys.create(options.tenant, admin=options.admin, **terms).secret_text)


def _set_key(options: argparse.Namespace) -> None:
    keys = _accounts(options).keys
    _print_keys([keys.change(options.public, **_terms(options, keys.get(options.public).limits))])


def _list_keys(options: argparse.Namespace) -> None:
    _print_keys(_accounts(options).keys.list(options.tenant))


def _rotate_key(options: argparse.Namespace) -> None:
    print(_accounts(options).keys.rotate(options.public, options.grace).secret_text)
    until = f"{options.grace} seconds more" if options.grace else "no more"
    print(f"The old key works {until}; the new one has limits and budgets of its own, as large.", file=sys.stderr)


def _revoke_key(options: argparse.Namespace) -> None:
    _accounts(options).keys.revoke(options.public)
    print(f"Key {options.public} is revoked; running servers follow within 5 seconds.")


def _print_keys(keys: "list[Key] | tuple[Key, ...]") -> None:
    rows = [
        (
            key.public,
            key.tenant,
            "admin" if key.admin else "model",
            key.problem or ("retiring" if key.replaced_by else "usable"),
            day_of(key.created_at),
            day_of(key.expires_at),
            _scope(key),
            _told(msgspec.to_builtins(key.limits)),
            key.label,
        )
        for key in keys
    ]
    head = ("KEY", "TENANT", "KIND", "STATE", "SINCE", "EXPIRES", "MAY USE", "LIMITS", "LABEL")
    print_table(head, rows)


def _scope(key: Key) -> str:
    if key.admin:
        return "-"
    scopes = {"models": key.models, "endpoints": key.endpoints}
    return _told({name: ",".join(names) or "nothing" for name, names in scopes.items() if names is not None}, "all")


def _told(values: Mapping[str, Any], nothing: str = "-") -> str:
    """Settings in one line."""
    return " ".join(f"{name}={_value(value)}" for name, value in values.items()) or nothing


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(cast("list[str]", value))
    if value in (None, ""):
        return "none"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# ------------------------------------------------------------------------------------------------------------ tenants


def _add_tenants(commands: Commands) -> None:
    make = _command(commands, "create", "make a tenant", _create_tenant)
    make.add_argument("--name", default="", help="its name, for people")
    _command(commands, "list", "show all tenants", _list_tenants)
    differ = _command(commands, "set", "name a tenant anew, or give it settings of its own", _set_tenant)
    show = _command(commands, "show", "show a tenant and where it differs", _show_tenant)
    suspend = _command(commands, "suspend", "refuse what its keys ask for, within 5 seconds", _suspend_tenant)
    activate = _command(commands, "activate", "serve them again", _activate_tenant)
    for command in (make, differ, show, suspend, activate):
        command.add_argument("tenant", help="its id: a-z, 0-9, - and _")
    differ.add_argument("wishes", nargs="+", metavar="NAME=VALUE", help=_WISHES)


_WISHES = (
    "name, limits.NAME and media.NAME as in the settings (a wrong NAME is answered with all there are), "
    "moderation.on_failure (closed, open or flag: what becomes of a request when a moderator cannot be asked), "
    "moderation.off (names of moderators that do not look, between commas); an empty value takes a setting back, "
    "none lifts a limit and has all moderators look"
)


def _create_tenant(options: argparse.Namespace) -> None:
    try:
        _accounts(options).tenants.create(options.tenant, name=options.name)
    except TenantExists:
        print(f"Tenant {options.tenant} was there already.")
    else:
        print(f"Tenant {options.tenant} is made.")


def _list_tenants(options: argparse.Namespace) -> None:
    rows = [
        (tenant.id, tenant.status, day_of(tenant.created_at), _told(_differences(tenant)), tenant.name)
        for tenant in _accounts(options).tenants.list()
    ]
    print_table(("TENANT", "STATE", "SINCE", "OWN SETTINGS", "NAME"), rows)


def _show_tenant(options: argparse.Namespace) -> None:
    _print_tenant(_accounts(options).tenants.get(options.tenant))


def _set_tenant(options: argparse.Namespace) -> None:
    wishes: dict[str, str] = {}
    for wish in options.wishes:
        name, equals, value = wish.partition("=")
        if not equals:
            raise ValueError(f"What is set is given as NAME=VALUE; {wish!r} is not.")
        wishes[name] = value
    _print_tenant(_accounts(options).tenants.reword(options.tenant, wishes))
    if wishes.get("moderation.off", "none") not in ("", "none") and not settings_of(options).moderation.moderators:
        print("Unchecked: the settings here name no moderators; --config takes the server's.", file=sys.stderr)


def _suspend_tenant(options: argparse.Namespace) -> None:
    _print_tenant(_accounts(options).tenants.change(options.tenant, status="suspended"))


def _activate_tenant(options: argparse.Namespace) -> None:
    _print_tenant(_accounts(options).tenants.change(options.tenant, status="active"))


def _print_tenant(tenant: Tenant) -> None:
    print(f"Tenant {tenant.id} ({tenant.name}), {tenant.status}, since {day_of(tenant.created_at)}")
    own = _differences(tenant)
    for name, value in own.items():
        print(f"{name}={_value(value)}")
    if not own:
        print("It has no limits, bounds on media or terms of moderation of its own.")


def _differences(tenant: Tenant) -> dict[str, Any]:
    return {f"{table}.{name}": value for table in FORMS for name, value in getattr(tenant, table).items()}


# --------------------------------------------------------------------------------------------------- prices and audit


def _add_prices(commands: Commands) -> None:
    price = _command(commands, "set", "set a price, for a million tokens and for a request", _set_price)
    price.add_argument("model", help="its name, or '*' for all that have no price of their own")
    for name in PRICES:
        flag = f"--{name.replace('_', '-')}"
        price.add_argument(flag, metavar="AMOUNT", required=name in Amounts.__required_keys__, help=_USUAL.get(name))
    price.add_argument("--from", dest="start", type=parse_time, help="2027-01-01 (its beginning, UTC); now if absent")
    _command(commands, "list", "show all prices, the last set first", _list_prices)


_USUAL = {
    "vision_in": "if absent, as --text-in",
    "cached_in": "if absent, the lower of --text-in and --vision-in",
    "reasoning": "if absent, as --out",
    "per_request": "if absent, nothing",
}


def _set_price(options: argparse.Namespace) -> None:
    amounts = Amounts(**{name: getattr(options, name) for name in PRICES})
    accounts = _accounts(options)
    _print_prices(options, [accounts.prices.set(options.model, options.start, **amounts)])
    served = settings_of(options).model.name
    if options.model not in ("*", served):
        print(f"The settings here serve '{served}', not '{options.model}'.", file=sys.stderr)


def _list_prices(options: argparse.Namespace) -> None:
    _print_prices(options, _accounts(options).prices.list())


def _print_prices(options: argparse.Namespace, prices: list[Price]) -> None:
    head = ("PRICE", "MODEL", "FROM", *(name.replace("_", " ").upper() for name in PRICES))
    rows = [
        (
            str(price.id),
            price.model,
            second_of(price.effective_from),
            *(format_amount(getattr(price, name)) for name in PRICES),
        )
        for price in prices
    ]
    print_table(head, rows)
    print(f"In {settings_of(options).ledger.currency}, for a million tokens.")


def _list_audit(options: argparse.Namespace) -> None:
    rows = [
        (second_of(entry.at), entry.actor, entry.action, entry.object, _told(entry.details))
        for entry in _accounts(options).audit.list(limit=max(1, options.last))
    ]
    print_table(("TIME", "WHO", "WHAT", "OF", "DETAILS"), rows)
