"""Everything a client can do, sans I/O: both faces run these steps."""

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from qwen3vl_compat.adapters.calling.answers import Answer, streamed, whole
from qwen3vl_compat.adapters.calling.failures import InvalidInput, decoded
from qwen3vl_compat.adapters.calling.files import NewFile, RemoteFile, deleted, listed, uploaded
from qwen3vl_compat.adapters.calling.options import (
    Common,
    Configuration,
    Options,
    Question,
    check,
    check_names,
    key_of,
    request_of,
    sending_of,
)
from qwen3vl_compat.adapters.calling.prompt import gathered, turns
from qwen3vl_compat.adapters.calling.sending import Sending, carried_out
from qwen3vl_compat.adapters.calling.steps import Call, Steps, T, work
from qwen3vl_compat.wire.openai_client import encode_request


class Model(Struct, frozen=True):
    """A served model."""

    id: str
    max_model_len: int = 0
    """Tokens of prompt and answer together."""


class _Models(Struct):
    data: list[Model]


class _Count(Struct):
    input_tokens: int


class Caller:
    """The steps of each call, for one configuration."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def answer(self, question: Question, *, stream: bool) -> Steps[Answer]:
        """Ask for one answer, whole or bit by bit."""
        sending = self._sending(question.options, Options)
        body = yield from self._body(question, sending, stream=stream)
        key = key_of(question.options, stream=stream)
        headers = {"content-type": "application/json", "x-server-timeout": f"{sending.left:.1f}"}
        call = Call(
            method="POST",
            path="/v1/chat/completions",
            headers=headers | ({"idempotency-key": key} if key else {}),
            body=(body,),
            size=len(body),
            sent=sending.counter("request", len(body)),
            stream=stream,
            repeatable=bool(key),
        )
        return (yield from (streamed if stream else whole)(call, sending))

    def count(self, question: Question) -> Steps[int]:
        """How many tokens a question is, its pictures and tools included."""
        sending = self._sending(question.options, Options)
        body = yield from self._body(question, sending, stream=False)
        call = Call(
            method="POST",
            path="/v1/chat/completions/input_tokens",
            headers={"content-type": "application/json"},
            body=(body,),
            size=len(body),
        )
        return decoded((yield from carried_out(call, sending)), _Count).input_tokens

    def _body(self, question: Question, sending: Sending, *, stream: bool) -> Steps[bytes]:
        check(question)
        conversation = turns(question.prompt, question.image_path)
        messages = yield from gathered(conversation, self.configuration.longest_side, sending)
        try:
            return encode_request(request_of(question, messages, self.configuration, stream=stream))
        except UnicodeEncodeError:
            raise InvalidInput("what is asked holds half of a character, a lone surrogate; it cannot be sent") from None

    def upload(self, source: str | Path | bytes, name: str, life: int | None, common: Common) -> Steps[RemoteFile]:
        """Upload a file, to be asked about more than once."""
        sending = self._sending(common)
        path = Path(source) if isinstance(source, str) else source
        file = yield from work(lambda: NewFile.of(path, "source"))
        if name:
            file = msgspec.structs.replace(file, name=name)
        return (yield from uploaded(file, life, sending))

    def files(self, common: Common) -> Steps[list[RemoteFile]]:
        """List what is kept."""
        return (yield from listed(self._sending(common)))

    def delete_file(self, file: RemoteFile | str, common: Common) -> Steps[None]:
        """Remove a file."""
        yield from deleted(file, self._sending(common))

    def models(self, common: Common) -> Steps[list[Model]]:
        """List what is served to the key."""
        reply = yield from carried_out(Call(method="GET", path="/v1/models"), self._sending(common))
        return decoded(reply, _Models).data

    def _sending(self, common: Common, known: type[Common] = Common) -> Sending:
        check_names(common, known)
        return sending_of(self.configuration, common)


Task = Callable[[Caller, Common], Steps[T]]
"""Something to be found out by asking, as the `abilities` are; either face runs it."""
