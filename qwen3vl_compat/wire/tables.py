"""The fields tables of the wires as Markdown: `python -m qwen3vl_compat.wire.tables` prints what docs/api.md holds."""

from collections.abc import Iterator, Mapping

from qwen3vl_compat.wire.anthropic_fields import ANTHROPIC
from qwen3vl_compat.wire.body import Rules
from qwen3vl_compat.wire.fields import GOOGLE, MODERATIONS, OPENAI
from qwen3vl_compat.wire.openai_completions_request import COMPLETIONS
from qwen3vl_compat.wire.openai_responses_fields import RESPONSES

WIRES: Mapping[str, Mapping[str, Rules]] = {
    "OpenAI: /v1/chat/completions": OPENAI,
    "OpenAI: /v1/responses": RESPONSES,
    "OpenAI: /v1/completions": COMPLETIONS,
    "OpenAI: /v1/moderations": MODERATIONS,
    "Google: models/{model}:generateContent": GOOGLE,
    "Anthropic: /v1/messages": ANTHROPIC,
}


def markdown() -> str:
    """One section a wire, one table row a field."""
    return "\n".join(line for title, tables in WIRES.items() for line in _section(title, tables))


def _section(title: str, tables: Mapping[str, Rules]) -> Iterator[str]:
    yield from (f"## {title}", "", "| object | field | what becomes of it |", "|---|---|---|")
    for kind, rules in tables.items():
        for name, rule in rules.items():
            said = rule.kind
            if rule.kind == "refused":
                said += f": {rule.note}"
                if rule.neutral:
                    said += f" (unless {', '.join(f'`{value!r}`' for value in rule.neutral)})"
            yield f"| {kind} | `{name}` | {said} |"
    yield ""


if __name__ == "__main__":
    print(markdown())
