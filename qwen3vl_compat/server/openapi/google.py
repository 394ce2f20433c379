"""Google's native routes as OpenAPI tells them, their fields in camelCase; in snake_case they are read as well."""

from qwen3vl_compat.server import google_routes
from qwen3vl_compat.server.openapi.forms import (
    ANY,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    exactly_one,
    forms_of,
    one_of,
    ref,
    schemas_of,
)
from qwen3vl_compat.server.openapi.google_answers import COMPONENTS as ANSWERS
from qwen3vl_compat.server.openapi.openai import GENERATING, TIMEOUT
from qwen3vl_compat.server.openapi.operation import ANSWERED, COUNTED, EVENTS, JSON, SSE, Operation, query
from qwen3vl_compat.wire import google_request
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.fields import GOOGLE
from qwen3vl_compat.wire.google_contents import ROLES
from qwen3vl_compat.wire.google_media import RESOLUTIONS
from qwen3vl_compat.wire.google_tools import MODES

_CLOSELY = one_of(*RESOLUTIONS)
_MEDIUM = {"inlineData": "blob", "fileData": "fileData"}
_NUMBER = (WHOLE, {"type": "string", "pattern": "^-?[0-9]+$"})
"""As proto-JSON writes one, too."""

COMPONENTS: dict[str, Json] = {
    **schemas_of(*ANSWERS),
    **forms_of("Google", GOOGLE, {
        "request": Kind(None, {
            "contents": ["content", ...], "systemInstruction": (TEXT, "content"), "tools": ["tool"],
            "toolConfig": "toolConfig", "generationConfig": "generationConfig",
        }, ("contents",)),
        "countTokens": Kind(None, {
            "contents": ["content", ...], "systemInstruction": (TEXT, "content"), "generateContentRequest": "request",
        }),
        "content": Kind(None, {"role": one_of(*ROLES), "parts": (["part", ...], "part")}, ("parts",)),
        "part": Kind(None, {
            "text": TEXT, "thought": FLAG, **_MEDIUM, "functionCall": "functionCall",
            "functionResponse": "functionResponse", "videoMetadata": "videoMetadata",
            "documentMetadata": "documentMetadata", "mediaResolution": (_CLOSELY, "mediaResolution"),
        }, shapes=exactly_one("text", "inlineData", "fileData", "functionCall", "functionResponse")),
        "functionCall": Kind(None, {"id": TEXT, "name": TEXT, "args": OBJECT}, ("name",)),
        "functionResponse": Kind(
            None, {"id": TEXT, "name": TEXT, "response": OBJECT, "parts": ["responsePart"]}, ("name",)
        ),
        "responsePart": Kind(None, _MEDIUM),
        "tool": Kind(None, {"functionDeclarations": ["functionDeclaration"]}),
        "functionDeclaration": Kind(
            None, {"name": TEXT, "description": TEXT, "parameters": OBJECT, "parametersJsonSchema": ANY}, ("name",)
        ),
        "toolConfig": Kind(None, {"functionCallingConfig": "functionCallingConfig"}),
        "functionCallingConfig": Kind(None, {"mode": one_of(*MODES), "allowedFunctionNames": [TEXT]}),
        "thinkingConfig": Kind(None, {"includeThoughts": FLAG, "thinkingBudget": _NUMBER, "thinkingLevel": TEXT}),
        "blob": Kind(None, {"mimeType": TEXT, "data": TEXT, "displayName": TEXT}, ("data",)),
        "fileData": Kind(None, {"mimeType": TEXT, "fileUri": TEXT, "displayName": TEXT}, ("fileUri",)),
        "videoMetadata": Kind(None, {"startOffset": TEXT, "endOffset": TEXT, "fps": NUMBER}),
        "documentMetadata": Kind(None, {"startPage": WHOLE, "endPage": WHOLE}),
        "mediaResolution": Kind(None, {"level": _CLOSELY, "numTokens": WHOLE}),
        "generationConfig": Kind(google_request.Config, {
            "responseMimeType": TEXT, "responseSchema": OBJECT, "responseJsonSchema": ANY, "responseLogprobs": FLAG,
            "thinkingConfig": "thinkingConfig", "mediaResolution": _CLOSELY,
        }, bounds=google_request.BOUNDS),
    }, closed=True),
}  # fmt: skip

_ALT = query("alt", one_of("json", "sse"), "A JSON array that grows, or server-sent events.")
_TAG = "Google"


def _paths(method: str) -> tuple[str, ...]:
    return (f"/v1/models/{{model}}:{method}", f"/v1beta/models/{{model}}:{method}")


OPERATIONS = (
    Operation(
        handler=google_routes.call_model, name="generateContent", paths=_paths("generateContent"), tag=_TAG,
        body={JSON: ref("Google.request")}, parameters=GENERATING, answer={JSON: ref("GeneratedContent")},
        more=ANSWERED,
    ),
    Operation(
        handler=google_routes.call_model, name="streamGenerateContent", paths=_paths("streamGenerateContent"), tag=_TAG,
        body={JSON: ref("Google.request")}, parameters=(_ALT, *GENERATING), more=ANSWERED,
        answer={
            JSON: {"type": "array", "items": {"anyOf": [ref("GeneratedContent"), ref("GoogleError")]}}, SSE: EVENTS,
        },
    ),
    Operation(
        handler=google_routes.call_model, name="countTokens", paths=_paths("countTokens"), tag=_TAG,
        body={JSON: ref("Google.countTokens")}, parameters=(TIMEOUT,), answer={JSON: ref("CountedTokens")},
        more=COUNTED,
    ),
)  # fmt: skip
