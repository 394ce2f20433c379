"""No piece of a stop string is ever shown, and nothing else is held back for long."""

from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.engines.stop import StopStrings

letters = st.text("abc", max_size=12)


@given(pieces=st.lists(letters, max_size=8), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_shown_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    held, shown = StopStrings(tuple(stops)), ""
    for piece in pieces:
        shown += held.push(piece)
        said = "".join(pieces)
        assert said.startswith(shown)
    if not held.stopped:
        shown += held.finish()
    whole = "".join(pieces)
    assert held.stopped == any(stop in whole for stop in stops)
    assert not any(stop in shown for stop in stops)
    if not held.stopped:
        assert shown == whole
    else:
        # the stop string that ends first in the stream decides, as a reader of the stream would see it
        assert whole.startswith(shown + held.found)
        assert held.found in stops


def test_text_that_cannot_begin_a_stop_string_comes_at_once() -> None:
    held = StopStrings(("END",))
    assert [held.push(piece) for piece in ("abE", "x", "EN", "D!")] == ["ab", "Ex", "", ""]
    assert held.found == "END"
