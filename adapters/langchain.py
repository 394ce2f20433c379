"""`ChatQwen3VL`, the chat model for LangChain; it needs the package's extra `[langchain]`.

    model = ChatQwen3VL(base_url="http://localhost:8080", api_key="sk-...")
    print(model.invoke("Hello").text)

It is a third face of the Python client: requests, retries and errors are those of `calling`.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils import from_env, secret_from_env
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from qwen3vl_compat.adapters.calling.answers import Answer
from qwen3vl_compat.adapters.calling.caller import Caller
from qwen3vl_compat.adapters.calling.connections import looping, waiting
from qwen3vl_compat.adapters.calling.failures import InvalidInput
from qwen3vl_compat.adapters.calling.options import Configuration, Question
from qwen3vl_compat.adapters.calling.transport import AsyncRun, Run
from qwen3vl_compat.adapters.client import AsyncStream, Stream
from qwen3vl_compat.adapters.langchain_answers import PROVIDER, end, generation, piece
from qwen3vl_compat.adapters.langchain_failures import known_to_langchain
from qwen3vl_compat.adapters.langchain_messages import conversation
from qwen3vl_compat.adapters.langchain_options import question_of, response_format
from qwen3vl_compat.adapters.langchain_output import Method, parsed, parser_of
from qwen3vl_compat.wire.asked import EFFORTS

__all__ = ["ChatQwen3VL"]

Tools = Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool]

ASKED = (
    "model", "temperature", "max_tokens", "stop", "top_p", "top_k", "min_p", "seed", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logprobs", "top_logprobs", "enable_thinking", "thinking_budget",
    "reasoning_effort",
)  # fmt: skip
"""Fields of the model that every request has, unless a call says otherwise."""

PROFILE = ModelProfile(
    name="Qwen3-VL",
    open_weights=True,
    text_inputs=True,
    image_inputs=True,
    image_url_inputs=True,
    pdf_inputs=True,
    video_inputs=True,
    audio_inputs=False,
    image_tool_message=True,
    pdf_tool_message=True,
    text_outputs=True,
    image_outputs=False,
    audio_outputs=False,
    video_outputs=False,
    reasoning_output=True,
    reasoning_effort_levels=list(EFFORTS),
    tool_calling=True,
    tool_choice=True,
    tool_call_streaming=True,
    mid_conversation_system_messages=True,
    structured_output=True,
    attachment=True,
    temperature=True,
)
"""What the server does for any checkpoint; how long a prompt may be, `GET /v1/models` says."""


class ChatQwen3VL(BaseChatModel):
    """Qwen3-VL behind this project's server. What is None is left to the server; a call may say all of it anew."""

    model_config = ConfigDict(extra="forbid")

    base_url: str = Field(default_factory=from_env("QWEN3VL_BASE_URL", default="http://localhost:8080"))
    api_key: SecretStr | None = Field(default_factory=secret_from_env("QWEN3VL_API_KEY", default=None))
    model: str = "qwen3-vl"
    timeout: float = 600.0
    """Seconds that a call may take, its pauses included."""
    max_retries: int = Field(default=4, ge=0)
    streaming: bool = False
    """Whether `invoke` streams too, for the sake of callbacks."""
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | str | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    """Tokens after which a thought is ended."""
    reasoning_effort: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse an address or a number that cannot be meant before anything is asked."""
        _ = self._caller
        return self

    @property
    def _caller(self) -> Caller:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        # Pictures go as they are given: they come encoded, and whoever wants them smaller does that before.
        return Caller(Configuration(self.base_url, key, self.model, self.timeout, self.max_retries, 0))

    # ------------------------------------------------------------------------------------------------ what it is

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"base_url": self.base_url, **self._defaults}

    @property
    def _defaults(self) -> dict[str, Any]:
        return {name: value for name in ASKED if (value := getattr(self, name)) is not None}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "QWEN3VL_API_KEY"}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        own = [self.stop] if isinstance(self.stop, str) else self.stop
        if "ls_stop" not in params and own:
            params["ls_stop"] = own
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        return PROFILE.copy()

    # ------------------------------------------------------------------------------------------------ what it does

    def _question(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> Question:
        said = {"stop": stop} if stop is not None else {}
        return question_of(conversation(messages), {**self._defaults, **said, **kwargs})

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        caller = self._caller
        with known_to_langchain():
            question = self._question(messages, stop, kwargs)
            steps = caller.answer(question, stream=False)
            return _result(Run(steps, waiting(caller.configuration.origin)).finish(), question)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        caller = self._caller
        with known_to_langchain():
            question = self._question(messages, stop, kwargs)
            steps = caller.answer(question, stream=False)
            return _result(await AsyncRun(steps, await looping(caller.configuration.origin)).finish(), question)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        caller = self._caller
        with known_to_langchain():
            question = _one_choice(self._question(messages, stop, kwargs))
            steps = caller.answer(question, stream=True)
            with Stream(Run(steps, waiting(caller.configuration.origin))) as stream:
                for delta in stream:
                    yield piece(delta)
                yield end(stream.answer, _model(question))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        caller = self._caller
        with known_to_langchain():
            question = _one_choice(self._question(messages, stop, kwargs))
            steps = caller.answer(question, stream=True)
            async with AsyncStream(AsyncRun(steps, await looping(caller.configuration.origin))) as stream:
                async for delta in stream:
                    yield piece(delta)
                yield end(stream.answer, _model(question))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Tools | None = None) -> int:
        """How many tokens these are, pictures and tools included; the server counts them."""
        caller = self._caller
        asked = {"tools": [convert_to_openai_tool(tool) for tool in tools]} if tools else {}
        with known_to_langchain():
            question = self._question(messages, None, asked)
            return Run(caller.count(question), waiting(caller.configuration.origin)).finish()

    def get_num_tokens(self, text: str) -> int:
        """The same for a text, as a turn of its own."""
        return self.get_num_tokens_from_messages([HumanMessage(text)])

    def get_token_ids(self, text: str) -> list[int]:
        """The server counts, it does not tell ids; LangChain's own way would be another model's."""
        raise NotImplementedError("The ids of tokens are the server's; get_num_tokens asks it for their number.")

    # ------------------------------------------------------------------------------------------------ tools and forms

    def bind_tools(
        self,
        tools: Tools,
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may call these.

        `tool_choice` is `auto`, `none`, `any` (or True), or the name of the tool that must be called; `strict` refuses
        schemas that cannot be kept to the letter; `response_format` is the form of an answer that is no call.
        """
        if kwargs.get("response_format") is not None:
            kwargs["response_format"] = response_format(kwargs["response_format"], strict=strict)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=[convert_to_openai_tool(tool, strict=strict) for tool in tools], **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """A model whose answers are held to a schema and read by it.

        `json_schema` holds the answer to it token by token, `function_calling` the arguments of a call that must be
        made; `json_mode` only has it be JSON, so that the prompt must say which. `strict` as for tools.
        """
        if kwargs:
            raise InvalidInput(f"{min(kwargs)}: there is no such argument", param=min(kwargs))
        if method == "json_mode" and strict is not None:
            raise InvalidInput("strict: json_mode knows no schema", param="strict")
        told = {"schema": schema, "kwargs": {"method": method, "strict": strict}}
        match method:
            case "json_schema":
                form = response_format(schema, strict=strict)
                model = self.bind(response_format=form, ls_structured_output_format=told)
            case "json_mode":
                model = self.bind(response_format={"type": "json_object"}, ls_structured_output_format=told)
            case "function_calling":
                name = convert_to_openai_tool(schema)["function"]["name"]
                model = self.bind_tools(
                    [schema],
                    tool_choice=name,
                    strict=strict,
                    parallel_tool_calls=False,
                    ls_structured_output_format=told,
                )
            case _:
                known = "json_schema, function_calling, json_mode"
                raise InvalidInput(f"method: must be one of {known}", param="method")
        return parsed(model, parser_of(schema, method), include_raw=include_raw)


def _result(answer: Answer, question: Question) -> ChatResult:
    model = _model(question)
    return ChatResult(generations=[generation(answer, choice, model) for choice in answer.choices])


def _model(question: Question) -> str:
    return question.options.get("model", "")


def _one_choice(question: Question) -> Question:
    if question.options.get("choices", 1) != 1:
        raise InvalidInput("n: a stream has one answer", param="n")
    return question
