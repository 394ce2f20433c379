"""Pictures: counted before anything is decoded, then checked, decoded and brought to the model's grid."""

import asyncio
from functools import partial

from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.image import VisionSpec, announced_tokens, decode_image
from qwen3vl_compat.messages import Image, Message, Part, Picture, Request, ToolResult
from qwen3vl_compat.policies import Prepare
from qwen3vl_compat.settings import MediaSettings


def checked_media(spec: VisionSpec, limits: MediaSettings, context: int) -> Prepare:
    """The step that turns each received Image of a request into a checked Picture.

    Pictures that together take more than `context` tokens are refused by what their headers say, before any is decoded.
    """
    # Two pictures at once: each may take hundreds of megabytes, and the threads serve other work too.
    return partial(_prepare, spec, limits, context, asyncio.Semaphore(2))


async def _prepare(
    spec: VisionSpec, limits: MediaSettings, context: int, decoding: asyncio.Semaphore, request: Request
) -> Request:
    images = [part for message in request.messages for part in message.leaves if isinstance(part, Image)]
    if not images:
        return request
    if len(images) > limits.max_images:
        raise InvalidRequest(
            f"The request holds {len(images)} pictures; at most {limits.max_images} are allowed.", code="too_many_media"
        )
    for image in images:
        if len(image.data) > limits.max_image_bytes:
            raise InvalidRequest(
                f"{image.param}: the picture is {len(image.data)} bytes; at most {limits.max_image_bytes} are allowed",
                param=image.param,
                code="image_too_large",
            )
    announced = sum(announced_tokens(image.data, spec) for image in images)
    if announced > context:
        raise InvalidRequest(
            f"Input tokens exceed the configured limit of {context} tokens: the pictures alone take {announced} "
            "(context_length_exceeded)",
            param=images[-1].param,
            code="context_length_exceeded",
        )
    return replace(request, messages=tuple([await _checked(message, spec, decoding) for message in request.messages]))


def _decoded(image: Image, spec: VisionSpec) -> Picture:
    try:
        return decode_image(image.data, spec, image.param)
    except InvalidRequest as error:
        message = f"{image.param}: {error.message}"
        raise InvalidRequest(message, param=image.param, code=error.code) from None


async def _checked(message: Message, spec: VisionSpec, decoding: asyncio.Semaphore) -> Message:
    async def checked(part: Part) -> Part:
        match part:
            case Image():
                async with decoding:
                    return await asyncio.to_thread(_decoded, part, spec)
            case ToolResult():
                return replace(part, parts=tuple([await checked(each) for each in part.parts]))
            case _:
                return part

    return replace(message, parts=tuple([await checked(part) for part in message.parts]))
