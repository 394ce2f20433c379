"""Completions in the application: each prompt is moderated, and each answer."""

from pathlib import Path

import pytest

from qwen3vl_compat.settings import ModerationSettings, ModeratorSettings, Settings
from tests.server.test_app import House

MODERATED = Settings(
    moderation=ModerationSettings(
        moderators=(
            ModeratorSettings(kind="words", name="asked", words={"a": ["bad"]}, stages=("before",)),
            ModeratorSettings(kind="words", name="said", words={"b": ["said"]}, stages=("after",)),
        )
    )
)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_prompts_and_answers_are_moderated(tmp_path: Path, stream: bool) -> None:
    house = House(tmp_path / "state", MODERATED)
    await house.service.open_books()
    async with house.client() as client:
        for prompt, status in (("a bad one", 400), (["good", "a bad one"], 400), (["count to 2", "good"], 200)):
            body = {"model": "qwen3-vl", "prompt": prompt, "stream": stream}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == status
            if status == 400:
                assert answer.json()["error"]["code"] == "content_policy_violation"
            else:  # the script's answer to the second begins with `You said`
                assert '"finish_reason":"content_filter"' in answer.text
                assert answer.text.count('"finish_reason":"stop"') == 1
    await house.service.close_books()
    house.accounts.database.dispose()
