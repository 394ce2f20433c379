"""Server-sent events, read as strictly as the strictest client of each wire does."""

from typing import Literal

from msgspec import Struct

from qwen3vl_compat.doctor.finding import Failed
from qwen3vl_compat.doctor.visit import Reply

Form = Literal["data", "named", "bare"]
"""`data`: OpenAI's chat, split by some clients at two line feeds. `named`: each with a line for its name. `bare`:
Google's, whose Python client takes any line that is no `data: ` for JSON, comments too."""
_TYPE = "text/event-stream"
_PROXY = "Does a proxy between change what passes? It must hand streams on as they are, without buffering."


class Event(Struct, frozen=True):
    """One event; `name` is empty where it has none."""

    name: str
    data: str


def read_events(reply: Reply, form: Form) -> list[Event]:
    """All events of a stream; raises Failed at the first line that a client would stumble over."""
    if not reply.headers.get("content-type", "").startswith(_TYPE):
        raise Failed(f"a stream of the type {_TYPE}", reply.headers.get("content-type", "no type"), _PROXY)
    text = reply.body.decode("utf-8", "replace")
    if form == "data" and "\r" in text:
        raise Failed("lines that end in a line feed alone", "a carriage return", _PROXY)
    events: list[Event] = []
    name, data, before = "", "", ""
    for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        if not line and before.startswith(":"):
            raise Failed("a comment with one line end, which is no event", f"{before!r} and an empty line", _PROXY)
        if not line and data:
            events.append(Event(name, data))
            name = data = ""
        elif line.startswith("data: ") and not data and bool(name) == (form == "named"):
            data = line.removeprefix("data: ")
        elif line.startswith("event: ") and form == "named" and not name:
            name = line.removeprefix("event: ")
        elif line and (form == "bare" or not line.startswith(":")):
            raise Failed(f"lines as this wire's clients read them ({form})", repr(line[:80]), _PROXY)
        before = line
    if name or data:
        raise Failed("an empty line behind each event, the last one too", repr((data or name)[:80]), _PROXY)
    return events
