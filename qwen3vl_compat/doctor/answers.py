"""The model's answers, on every wire: whole, streamed, to a picture, and their tokens."""

from qwen3vl_compat.doctor.finding import Failed
from qwen3vl_compat.doctor.refusals import granted
from qwen3vl_compat.doctor.visit import Visit
from qwen3vl_compat.doctor.wires import Answer, Question, Wire

HELLO, READ = "Say hello.", "Read the text."


def shown(text: str) -> str:
    """The beginning of an answer, in quotes."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _judged(visit: Visit, answer: Answer) -> Answer:
    visit.tokens += answer.prompt + answer.completion
    if not answer.text.strip() or answer.prompt < 1 or answer.completion < 1:
        seen = f"{answer.text!r}, {answer.prompt} and {answer.completion} tokens, finish {answer.finish}"
        raise Failed("an answer in words, and how many tokens it took", seen, "Does the model answer by other means?")
    return answer


async def check_whole(wire: Wire, visit: Visit) -> str:
    """A plain question has an answer that this wire's clients can read."""
    reply = await granted(visit, wire.ask(visit.key, Question(visit.model, HELLO)))
    answer = _judged(visit, wire.read(reply))
    return f"{shown(answer.text)}, {answer.finish}, {answer.prompt} + {answer.completion} tokens"


async def check_stream(wire: Wire, visit: Visit) -> str:
    """The same in pieces, without a line (to keep it alive, or a proxy's) that this wire's clients stumble over."""
    reply = await granted(visit, wire.ask(visit.key, Question(visit.model, HELLO), stream=True))
    answer = _judged(visit, wire.read_stream(reply))
    return f"{shown(answer.text)}, from {reply.first_s:.2f} to {reply.last_s:.2f} s"


async def check_picture(wire: Wire, picture: bytes, visit: Visit) -> str:
    """A picture is looked at: it takes tokens, and the count foretold is the one that is told with the answer."""
    plain = wire.counted(await granted(visit, wire.count(visit.key, Question(visit.model, READ))))
    question = Question(visit.model, READ, picture, most=16)
    counted = wire.counted(await granted(visit, wire.count(visit.key, question)))
    answer = _judged(visit, wire.read(await granted(visit, wire.ask(visit.key, question))))
    if not plain < counted == answer.prompt:
        seen = f"{plain} without, {counted} with, and {answer.prompt} told"
        raise Failed("more tokens with a picture than without, and as many told with the answer", seen)
    return f"{shown(answer.text)}, {counted - plain} tokens of picture, as counted before"


async def check_count(wire: Wire, visit: Visit) -> str:
    """As many tokens are counted beforehand as the answer tells."""
    question = Question(visit.model, HELLO, most=1)
    counted = wire.counted(await granted(visit, wire.count(visit.key, question)))
    answer = wire.read(await granted(visit, wire.ask(visit.key, question)))
    visit.tokens += answer.prompt + answer.completion
    if counted != answer.prompt:
        raise Failed(f"usage of {counted} prompt tokens, as counted before", str(answer.prompt))
    return f"{counted}, as told with the answer"
