"""The program with an engine that answers as an expert would: `python -m tests.adapters.expert serve ...`."""

from typing import ClassVar

from qwen3vl_compat import cli, engines
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.settings import Settings

PAGE = '<html><body><h1 data-bbox="100 50 900 150">Annual report</h1><p>No place.</p></body></html>'

TEXTS = """{"en": {"title": "Lamp", "text": "It shines."}, "de": {"title": "Lampe", "text": "Sie leuchtet."},
"zh": {"title": "灯", "text": "它会发光。"}}"""


def call(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


class Expert(ScriptedEngine):
    """Knows the words of the prompts, not the pictures."""

    EXPERTISE: ClassVar = (
        (r"qwenvl html", PAGE),
        (r"qwenvl markdown", "Here it is:\n```markdown\n# Annual report\n```"),
        (r'categories: "(\w+)".*bbox', r'[{"bbox_2d": [100, 200, 300, 400], "label": "\1"}]'),
        (r'points: "(\w+)"', r'[{"point_2d": [500, 1000], "label": "\1"}]'),
        (r"Localize every moment", '[{"start": "00:01.50", "end": "01:03.00"}]'),
        (r"(?s)Extract the information.*colour", '{"colour": "red", "wheels": 4}'),
        (r"Analyze this (\w+)", "Here it is:\n```html\n<main>\\1</main>\n```\nEnjoy."),
        (r"(?s)query: press submit.*Answer with the next action", r'click_button("submit")'),
        (r"(?s)query: read on.*Answer with the next action", r'scroll_to("settings")'),
        (r"query: open the mail", call("computer_use", '{"action": "left_click", "coordinate": [1000, 250]}')),
        (r"query: wait blindly", call("computer_use", '{"action": "wait"}')),
        (r"(?s)What colour.*between <(\w+)>", r"I see. <\1>red</\1>"),
        (r"What colour", "red"),
        (r"Describe this image", "A red car."),
        # examples/repair_advice.py
        (r"What is damaged", '{"part": "hinge", "damage": "bent", "severity": "moderate"}'),
        (r"What is to be done about the (\w+)", call("find_manual", r'{"part": "\1"}')),
        (r"(?s)^result: .*?(https?://\S+?)[\"}].*", r"Straighten it, then tighten both screws: \1"),
        # examples/product_texts.py
        (r"Write the text that sells", TEXTS),
    )

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, script=self.EXPERTISE)


if __name__ == "__main__":
    engines.ENGINES["scripted"] = "tests.adapters.expert:Expert"
    cli.main()
