"""LangChain's own tests of a chat model: what takes a mind on the scripted engine, the rest on the bundled model."""

import importlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import httpx
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models
from langchain_tests.unit_tests import ChatModelUnitTests

from qwen3vl_compat.adapters.langchain import ChatQwen3VL
from qwen3vl_compat.demo import SAMPLE
from tests.media.typeset import typeset
from tests.serving import UNCACHED, Served, serving

MINDFUL = frozenset(
    {
        "test_tool_calling",
        "test_tool_calling_async",
        "test_agent_loop",
        "test_unicode_tool_call_integration",
        "test_json_mode",
        "test_bind_runnables_as_tools",
    }
)
"""What takes more than the demonstration's model, which reads a line of text: arguments found in the question or at
least not empty, a tool chosen freely, keys that only the prompt names."""
ALIAS = "qwen3-vl-by-another-name"
Details = Literal["audio_input", "audio_output", "reasoning_output", "cache_read_input", "cache_creation_input"]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class is among those that langchain-core lets `load` make, as a partner's whose name it has written down."""
    load = importlib.import_module("langchain_core.load.load")
    path = tuple(ChatQwen3VL.lc_id())
    monkeypatch.setitem(load.ALL_SERIALIZABLE_MAPPINGS, path, path)
    monkeypatch.setattr(load, "_default_class_paths_cache", {})


@pytest.mark.usefixtures("listed")
class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatQwen3VL]:
        return ChatQwen3VL

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"QWEN3VL_API_KEY": "sk-env", "QWEN3VL_BASE_URL": "http://there:8080"}
        return environment, {}, {"api_key": "sk-env", "base_url": "http://there:8080"}


# ------------------------------------------------------------------------------------------------- running servers


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files that the tests want from the web, as small ones of the same kinds; served at $SHELF."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "agentic-rag-output.png").write_bytes(SAMPLE.read_bytes())
    (folder / "dummy.pdf").write_bytes(typeset(["DUMMY"]))
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHELF", f"http://127.0.0.1:{server.server_port}")
            yield folder
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def web(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests themselves fetch comes from the shelf too."""

    def get(url: str, **_: Any) -> httpx.Response:
        return httpx.Response(200, content=(shelf / PurePosixPath(url).name).read_bytes())

    monkeypatch.setattr(chat_models.httpx, "get", get)


@pytest.fixture(scope="class")
def served(request: pytest.FixtureRequest, shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server with the class's engine, in its attribute `server`."""
    folder = tmp_path_factory.mktemp("langchain")
    (folder / "qwen3vl.toml").write_text(f'[model.aliases]\n"{ALIAS}" = "qwen3-vl"\n')
    environment = UNCACHED | {
        "QWEN3VL_CONFIG": str(folder / "qwen3vl.toml"),
        "QWEN3VL_MODEL__ENGINE": request.cls.engine,
        "QWEN3VL_MODEL__PAUSE": "0",
        "QWEN3VL_MEDIA__ALLOW_NETWORKS": "127.0.0.0/8",
        "QWEN3VL_MEDIA__PORTS": os.environ["SHELF"].rpartition(":")[2],
    }
    with serving(folder, environment=environment, module="tests.adapters.langchain_server") as server:
        request.cls.server = server
        yield


@pytest.mark.usefixtures("served")
class Integration(ChatModelIntegrationTests):
    engine: str
    server: Served

    @property
    def chat_model_class(self) -> type[ChatQwen3VL]:
        return ChatQwen3VL

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.server.url, "api_key": self.server.key, "max_tokens": 60}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_video_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return ALIAS

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Details]]:
        return {"invoke": ["reasoning_output", "cache_read_input"], "stream": ["reasoning_output", "cache_read_input"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self.asked("think: it is late then say: good night", stream=stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """The second time everything but the end is known."""
        self.asked("What is this? " * 30, stream=stream)
        return self.asked("What is this? " * 30, stream=stream)

    def asked(self, text: str, *, stream: bool) -> AIMessage:
        model = ChatQwen3VL(**self.chat_model_params)
        if not stream:
            return model.invoke(text)
        whole: AIMessageChunk | None = None
        for chunk in model.stream(text):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None
        return whole


class TestDemo(Integration):
    """Everything that the bundled model can do."""

    engine = "local"
    elsewhere = MINDFUL


class TestScripted(Integration):
    """What takes a mind, and thoughts."""

    engine = "scripted"
    elsewhere = frozenset(
        name
        for name in dir(ChatModelIntegrationTests)
        if name.startswith("test_") and name not in MINDFUL | {"test_usage_metadata", "test_usage_metadata_streaming"}
    ) - {"test_no_overrides_DO_NOT_OVERRIDE"}


def test_every_item_is_run_on_one_engine_at_least() -> None:
    items = {name for name in dir(ChatModelIntegrationTests) if name.startswith("test_")}
    assert items >= MINDFUL
    assert TestDemo.elsewhere & TestScripted.elsewhere == set()
