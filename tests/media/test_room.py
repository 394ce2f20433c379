"""Room for media: counted to the byte, and never all of it one tenant's."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.errors import Overloaded
from qwen3vl_compat.media.room import Room


def test_a_tenant_that_takes_all_it_can_leaves_room_for_the_next() -> None:
    room = Room(1000)
    with room.taking("flood") as take, room.taking("flood") as more:
        take(700)
        more(100)
        with pytest.raises(Overloaded, match="no memory"):
            more(1)
        with room.taking("quiet") as quiet:
            quiet(160)
            with pytest.raises(Overloaded):
                quiet(1)
        with room.taking("another") as another:
            another(160)
    with room.taking("quiet") as quiet:
        quiet(800)
    assert room.held == 0


@given(asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=30))
def test_no_order_of_takers_holds_more_than_there_is(asked: list[tuple[str, int]]) -> None:
    room, held = Room(1000), 0
    with ExitStack() as stack:
        for tenant, size in asked:
            take = stack.enter_context(room.taking(tenant))
            try:
                take(size)
                held += size
            except Overloaded:
                pass
            assert room.held == held <= room.most
    assert (room.held, len(room._of)) == (0, 0)
