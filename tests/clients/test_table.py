"""The documentation's table of checked clients is one of the clients and versions that are pinned."""

from tests.clients.table import BEGIN, CASES, CLIENTS, DOCUMENT, END, table


def test_the_table_is_of_the_pinned_clients_and_all_passed() -> None:
    """After a change of either, `make conformance` writes it anew."""
    held = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    passed = {(client.name, case): True for client in CLIENTS for case in CASES}
    assert held.strip() == table(passed)


def test_what_did_not_pass_is_told() -> None:
    passed = {(client.name, case): True for client in CLIENTS for case in CASES}
    first = next(case for case in CASES if case not in CLIENTS[0].none)
    cells = table(passed | {(CLIENTS[0].name, first): False}).splitlines()[2].split(" | ")
    assert cells[2 + CASES.index(first)] == "FAILED"
