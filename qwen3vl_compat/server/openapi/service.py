"""The routes of models, health, figures and of the description itself, as OpenAPI tells them."""

from typing import Literal

from msgspec import Struct, field
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from qwen3vl_compat.server import health, model_routes, schema_routes
from qwen3vl_compat.server.openapi.forms import OBJECT, TEXT, ref, schemas_of
from qwen3vl_compat.server.openapi.operation import FOUND, JSON, Operation
from qwen3vl_compat.wire.body import Json


class Named(Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer that has no field but these."""


class OpenAIModel(Named):
    """A model in OpenAI's list."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class GoogleModel(Named, rename="camel"):
    """A model in Google's list."""

    name: str
    version: str
    display_name: str
    description: str
    input_token_limit: int
    output_token_limit: int
    supported_generation_methods: list[str]


class Model(OpenAIModel):
    """One model with the fields of both families."""

    name: str
    version: str
    display_name: str = field(name="displayName")
    description: str
    input_token_limit: int = field(name="inputTokenLimit")
    output_token_limit: int = field(name="outputTokenLimit")
    supported_generation_methods: list[str] = field(name="supportedGenerationMethods")


class ModelList(Named):
    """OpenAI's `data` and Google's `models`, side by side."""

    object: Literal["list"]
    data: list[OpenAIModel]
    models: list[GoogleModel]


class AnthropicModel(Named):
    """A model as Anthropic's clients know it."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int


class AnthropicModelList(Named):
    """The models for a request with the header `anthropic-version`."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Alive(Named):
    """The process answers."""

    status: Literal["ok"]


class Ready(Named):
    """Whether requests are taken, and how many are under way."""

    status: Literal["ok", "stopping", "unavailable"]
    models: list[str]
    running: int
    version: str


COMPONENTS: dict[str, Json] = schemas_of(Model, ModelList, AnthropicModel, AnthropicModelList, Alive, Ready)
_TAG = "Service"


def _either(*names: str) -> Json:
    return {"anyOf": [ref(name) for name in names]}


_FIGURES = CONTENT_TYPE_LATEST.partition(";")[0]

OPERATIONS = (
    Operation(
        handler=model_routes.list_models, tag="Models", answer={JSON: _either("ModelList", "AnthropicModelList")}
    ),
    Operation(
        handler=model_routes.get_model, tag="Models", paths=("/v1/models/{model}", "/v1beta/models/{model}"),
        answer={JSON: _either("Model", "AnthropicModel")}, more=FOUND,
    ),
    Operation(handler=health.livez, tag=_TAG, answer={JSON: ref("Alive")}),
    Operation(handler=health.readyz, tag=_TAG, answer={JSON: ref("Ready")}, other={503: {JSON: ref("Ready")}}),
    Operation(handler=health.metrics, tag=_TAG, answer={_FIGURES: TEXT}),
    Operation(handler=schema_routes.get_schema, tag=_TAG, answer={JSON: OBJECT}),
)  # fmt: skip
