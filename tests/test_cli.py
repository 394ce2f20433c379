"""The command line's accounts: what it is told, what it prints, what is in the database afterwards."""

import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from qwen3vl_compat import cli
from qwen3vl_compat.accounts.books import Accounts, open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.key import Key
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.settings import ModerationTerms, OnFailure, Quotas, Settings

Run = Callable[..., str]


@pytest.fixture(scope="module")
def new_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "state"
    open_database(folder).dispose()
    return folder / FILE


@pytest.fixture
def state(tmp_path: Path, new_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(new_file, tmp_path)
    return tmp_path


@pytest.fixture
def run(state: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command; returns what it printed."""

    def command(*words: str) -> str:
        cli.main([*words, "--state-dir", str(state)])
        return capsys.readouterr().out

    command("tenants", "create", "acme", "--name", "Acme & Co.")
    return command


@pytest.fixture
def accounts(state: Path) -> Accounts:
    return open_accounts(open_database(state), Settings())


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that ends with status 1 (2 for options that cannot be read); returns its sentence."""

    def command(*words: str, status: int = 1) -> str:
        with pytest.raises(SystemExit) as ended:
            run(*words)
        assert ended.value.code == status
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        assert len(said.err.splitlines()) == 1 or status == 2
        return said.err

    return command


def made(run: Run, accounts: Accounts, *words: str) -> Key:
    """The key that `keys create` made."""
    secret = run("keys", "create", "--tenant", "acme", *words).strip()
    assert re.fullmatch(r"sk-\w{12}-[\w-]{43}", secret)
    found = accounts.keys.find(secret)
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------------------- keys


def test_every_option_of_a_new_key(run: Run, accounts: Accounts) -> None:
    limits = "--requests 60/minute;1000/day --tpm 100000 --tpm-in 1 --tpm-out 2 --pictures-per-day 3 --concurrent 4"
    words = [*limits.split(), "--budget", "0.50/day;5.00/month", "--label", "x", "--expires", "30d"]
    words += ["--models", "a,b", "--endpoints", "generate,models"]
    key = made(run, accounts, *words)
    assert key.limits == Quotas(
        requests="60/minute;1000/day",
        tokens=100_000,
        tokens_in=1,
        tokens_out=2,
        pictures=3,
        concurrent=4,
        budget="0.50/day;5.00/month",
    )
    assert (key.label, key.models, key.endpoints, key.admin) == ("x", ("a", "b"), ("generate", "models"), False)
    assert key.expires_at is not None
    assert abs(key.expires_at / 1000 - time.time() - 30 * 86_400) < 120


def test_a_key_without_options_is_bound_to_nothing(run: Run, accounts: Accounts) -> None:
    key = made(run, accounts)
    assert (key.label, key.models, key.endpoints, key.expires_at, key.limits) == ("", None, None, None, Quotas())
    assert made(run, accounts, "--admin").admin
    assert run("keys", "create").startswith("sk-")


def test_rpm_is_requests_a_minute(run: Run, accounts: Accounts, refused: Run) -> None:
    assert made(run, accounts, "--rpm", "60").limits == Quotas(requests="60/minute")
    assert "not allowed with" in refused("keys", "create", "--rpm", "60", "--requests", "1/day", status=2)


def test_a_date_is_its_beginning_in_utc(run: Run, accounts: Accounts) -> None:
    key = made(run, accounts, "--expires", "2127-01-31")
    assert key.expires_at == datetime(2127, 1, 31, tzinfo=UTC).timestamp() * 1000
    key = made(run, accounts, "--expires", "2127-01-31T12:00:00+02:00")
    assert key.expires_at == datetime(2127, 1, 31, 10, tzinfo=UTC).timestamp() * 1000


def test_a_change_touches_only_what_it_names(run: Run, accounts: Accounts) -> None:
    key = made(run, accounts, "--label", "x", "--tpm", "5", "--concurrent", "2", "--models", "a")
    assert "tokens=6" in run("keys", "set", key.public, "--tpm", "6", "--endpoints", "files")
    changed = accounts.keys.get(key.public)
    assert (changed.label, changed.models, changed.endpoints) == ("x", ("a",), ("files",))
    assert changed.limits == Quotas(tokens=6, concurrent=2)
    run("keys", "set", key.public, "--tpm", "none", "--models", "all", "--endpoints", "", "--label", "")
    changed = accounts.keys.get(key.public)
    assert (changed.label, changed.models, changed.endpoints) == ("", None, ())
    assert changed.limits == Quotas(concurrent=2)
    run("keys", "set", key.public, "--expires", "1h")
    assert accounts.keys.get(key.public).expires_at is not None
    run("keys", "set", key.public, "--expires", "never", "--rpm", "1")
    assert accounts.keys.get(key.public).expires_at is None
    run("keys", "set", key.public, "--requests", "none")
    assert accounts.keys.get(key.public).limits == Quotas(concurrent=2)


def test_rotation_prints_the_successor(run: Run, accounts: Accounts, refused: Run) -> None:
    key = made(run, accounts, "--label", "x")
    successor = accounts.keys.find(run("keys", "rotate", key.public, "--grace", "24h").strip())
    assert successor is not None
    old = accounts.keys.get(key.public)
    assert (old.replaced_by, successor.label, old.usable) == (successor.public, "x", True)
    assert old.retires_at is not None
    assert abs(old.retires_at / 1000 - time.time() - 86_400) < 120
    assert "replaced" in refused("keys", "rotate", key.public, "--grace", "0s")


def test_revocation_takes_the_public_part_or_the_whole_key(run: Run, accounts: Accounts, refused: Run) -> None:
    secret = run("keys", "create", "--tenant", "acme").strip()
    assert "is revoked" in run("keys", "revoke", secret)
    assert accounts.keys.get(secret[3:15]).problem == "revoked"
    assert "revoked; it can no longer be changed" in refused("keys", "set", secret[3:15], "--label", "x")
    assert "There is no key" in refused("keys", "revoke", "A" * 12)
    assert "not the public part" in refused("keys", "revoke", "sk")


def test_keys_are_listed_in_an_aligned_table(run: Run, accounts: Accounts) -> None:
    key = made(run, accounts, "--label", "my laptop", "--models", "a", "--tpm", "5")
    other = accounts.keys.create("default", admin=True).key
    accounts.keys.rotate(key.public, 60)
    accounts.keys.revoke(other.public)
    lines = run("keys", "list").splitlines()
    assert len(lines) == 4
    assert lines[0].split("  ")[0] == "KEY"
    column = lines[0].index("TENANT")
    assert [line[column - 2 : column].strip() for line in lines] == [""] * 4
    [row] = [line for line in lines if line.startswith(key.public)]
    assert re.split(r" {2,}", row)[1:4] == ["acme", "model", "retiring"]
    assert row.endswith("models=a  tokens=5  my laptop")
    assert [line.split()[3] for line in lines if line.startswith(other.public)] == ["revoked"]
    assert len(run("keys", "list", "--tenant", "default").splitlines()) == 2
    assert "sk-" not in "".join(lines)


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        ("keys create --tenant nobody", "There is no tenant 'nobody'", 1),
        ("keys create --requests 60", "limits.requests: '60' is no limit", 1),
        ("keys create --budget 5/week", "limits.budget: '5/week' is no budget", 1),
        ("keys create --endpoints chat", "endpoints[0]: must be one of generate", 1),
        ("keys create --admin --models a", "models: an admin key", 1),
        ("keys create --expires 2020-01-01", "expires_at: must lie in the future", 1),
        ("keys create --expires 999999999d", "expires_at: must be between", 1),
        ("keys create --tpm 9999999999999999", "limits.tokens: cannot be", 1),
        ("keys create --expires soon", "'soon' is no time", 2),
        ("keys create --tpm -5", "neither a whole number nor none", 2),
        ("keys create --tpm 1.5", "neither a whole number nor none", 2),
        ("keys rotate AAAAAAAAAAAA --grace 1h", "There is no key", 1),
        ("keys rotate AAAAAAAAAAAA --grace 1", "is no span of time", 2),
        ("keys rotate AAAAAAAAAAAA", "--grace", 2),
        ("keys set AAAAAAAAAAAA --label x", "There is no key", 1),
        ("tenants create Acme", "id: a tenant's id", 1),
        ("tenants show nobody", "There is no tenant", 1),
        ("tenants set acme limits.tokens", "NAME=VALUE", 1),
        ("tenants set acme limits.rpm=5", "limits.rpm: a tenant has no such setting", 1),
        ("tenants set acme limits.tokens=x", "limits.tokens: cannot be", 1),
        ("tenants set acme moderation.on_failure=shut", "it must be one of closed, flag, open", 1),
        ("tenants set acme moderation.on=words", "there are name, limits.requests", 1),
        ("tenants set nobody limits.tokens=1", "There is no tenant", 1),
        ("prices set m --text-in 1", "--out", 2),
        ("prices set m --text-in 1 --out x", "out: An amount of money", 1),
        ("prices set m --text-in 1 --out 1 --from 2020-01-01", "effective_from: must not lie in the past", 1),
    ],
)
def test_a_mistake_is_one_sentence(refused: Run, accounts: Accounts, words: str, said: str, status: int) -> None:
    before = accounts.audit.list()
    assert said in refused(*words.split(), status=status)
    assert accounts.audit.list() == before


@pytest.mark.parametrize(
    "words",
    [
        "keys create", "keys list", "keys set AAAAAAAAAAAA --label x", "keys rotate AAAAAAAAAAAA --grace 1h",
        "keys revoke AAAAAAAAAAAA", "tenants create acme", "tenants list", "tenants set acme name=x",
        "tenants show acme", "tenants suspend acme", "tenants activate acme", "prices list",
        "prices set m --text-in 1 --out 1", "audit list", "usage",
    ],
)  # fmt: skip
def test_no_command_makes_an_installation(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "none" / "at all", tmp_path / "empty"):
        with pytest.raises(SystemExit, match="1"):
            cli.main([*words.split(), "--state-dir", str(folder)])
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == (
            f"qwen3vl-compat: There are no accounts here: {folder / FILE} is not there. Name the server's own "
            "--state-dir or --config; a new installation is made by the first start of `qwen3vl-compat serve`.\n"
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_lost_database_is_told_as_such_to_commands_too(state: Path, refused: Run) -> None:
    (state / FILE).rename(state / "moved.db")
    assert "tells of one that was in use" in refused("keys", "list")


def test_bytes_that_are_no_text_are_refused(refused: Run) -> None:
    assert "label" in refused("keys", "create", "--label", "\udcff")
    assert "model" in refused("prices", "set", "\udcff", "--text-in", "1", "--out", "1")


# ---------------------------------------------------------------------------------------------------------- tenants


def test_a_tenant_is_made_once(run: Run) -> None:
    assert run("tenants", "create", "new") == "Tenant new is made.\n"
    assert run("tenants", "create", "new") == "Tenant new was there already.\n"


def test_a_tenants_limits_are_set_shown_and_taken_back(run: Run, accounts: Accounts) -> None:
    wishes = ("limits.requests=60/minute", "limits.budget=5.00/month", "limits.tokens=none", "media.max_images=20")
    shown = run("tenants", "set", "acme", *wishes)
    assert set(shown.splitlines()[1:]) == set(wishes)
    assert run("tenants", "show", "acme") == shown
    assert accounts.tenants.get("acme").limits == {"requests": "60/minute", "budget": "5.00/month", "tokens": None}
    run("tenants", "set", "acme", "limits.requests=", "media.types=png,gif", "name=New name")
    tenant = accounts.tenants.get("acme")
    assert (tenant.name, "requests" in tenant.limits) == ("New name", False)
    assert "media.types=png,gif" in run("tenants", "show", "acme")
    assert [entry.action for entry in accounts.audit.list()] == ["tenant.change", "tenant.change", "tenant.create"]


def test_a_tenants_moderators_are_those_of_the_settings(
    run: Run, refused: Run, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the server's settings it is not known who moderates, and said so."""
    cli.main(["tenants", "set", "acme", "moderation.off=openai", "--state-dir", str(state)])
    said = capsys.readouterr()
    assert "moderation.off=openai" in said.out
    assert "the settings here name no moderators" in said.err
    cli.main(["tenants", "set", "acme", "moderation.off=", "moderation.on_failure=flag", "--state-dir", str(state)])
    assert capsys.readouterr().err == ""
    (state / "qwen3vl.toml").write_text('[[moderation.moderators]]\nkind = "words"\nwords = { a = ["x"] }\n')
    assert "there is no moderator 'openai'; there are words" in refused(
        "tenants", "set", "acme", "moderation.off=openai"
    )
    assert "moderation.off=words" in run("tenants", "set", "acme", "moderation.off=words")


def test_help_tells_what_can_be_set_of_moderation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tenants", "set", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name in (*ModerationTerms.__struct_fields__, *get_args(OnFailure)):
        assert name in told


def test_a_tenant_is_suspended_and_activated(run: Run, accounts: Accounts) -> None:
    assert "suspended" in run("tenants", "suspend", "acme")
    assert accounts.tenants.get("acme").status == "suspended"
    lines = run("tenants", "list").splitlines()
    assert [line.split()[:2] for line in lines] == [["TENANT", "STATE"], ["acme", "suspended"]]
    assert lines[1].endswith("Acme & Co.")
    run("tenants", "activate", "acme")
    assert accounts.tenants.get("acme").status == "active"


# ------------------------------------------------------------------------------------------------- prices and audit


def test_prices_are_set_and_listed(run: Run, accounts: Accounts) -> None:
    words = "--text-in 0.15 --vision-in 0.20 --cached-in 0.05 --out 0.60 --reasoning 0.70 --per-request 0.001"
    run("prices", "set", "qwen3-vl", *words.split())
    run("prices", "set", "*", "--text-in", "1", "--out", "2", "--from", "2127-01-01")
    later, now = accounts.prices.list()
    assert later.effective_from == datetime(2127, 1, 1, tzinfo=UTC).timestamp() * 1000
    assert (now.model, now.vision_in, now.per_request) == ("qwen3-vl", 200_000_000, 1_000_000)
    lines = run("prices", "list").splitlines()
    assert re.split(r" {2,}", lines[1])[1:] == [
        "*",
        "2127-01-01 00:00:00",
        "1.00",
        "1.00",
        "1.00",
        "2.00",
        "2.00",
        "0.00",
    ]
    assert re.split(r" {2,}", lines[2])[3:] == ["0.15", "0.20", "0.05", "0.60", "0.70", "0.001"]
    assert lines[3] == "In USD, for a million tokens."


def test_the_audit_tells_who_did_what(run: Run, accounts: Accounts) -> None:
    key = made(run, accounts, "--label", "Laptop")
    run("keys", "revoke", key.public)
    lines = run("audit", "list").splitlines()
    rows = [re.split(r" {2,}", line)[1:4] for line in lines[1:]]
    assert rows == [
        ["command line", "key.revoke", key.public],
        ["command line", "key.create", key.public],
        ["command line", "tenant.create", "acme"],
    ]
    assert lines[2].endswith("tenant=acme admin=false label=Laptop")
    assert len(run("audit", "list", "--last", "1").splitlines()) == 2


def test_what_serves_is_not_loaded_to_administer(state: Path) -> None:
    import subprocess
    import sys

    probe = (
        "import sys; from qwen3vl_compat import cli; "
        f"cli.main(['tenants', 'list', '--state-dir', {str(state)!r}]); "
        "print(*{'litestar', 'torch', 'uvicorn'} & sys.modules.keys())"
    )
    root = Path(cli.__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == ""
