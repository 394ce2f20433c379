"""Coverage-guided fuzzing of what reads strangers' bytes in the server's own process: `python -m tests.fuzz TARGET`.

Whatever comes in, a target returns or refuses; any other exception is a find. Options of libFuzzer follow the target's
name: `-max_total_time=60`. `make fuzz` runs them all, each for as long as SECONDS says.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import atheris

atheris.enabled_hooks.add("str")  # comparisons of text that the fuzzer is to see through
with atheris.instrument_imports(include=["qwen3vl_compat"]):
    from qwen3vl_compat.errors import ApiError
    from qwen3vl_compat.media import fetch, sniff
    from qwen3vl_compat.media.image import announced_size, check_size
    from qwen3vl_compat.media.limits import Bounds
    from qwen3vl_compat.wire import anthropic_messages, generate_content, openai_chat, openai_items, openai_responses
    from qwen3vl_compat.wire.body import decode_base64, decode_object
    from qwen3vl_compat.wire.openai_media import source_of

CHAT = '{"model":"m","messages":[{"role":"user","content":[%s]}]}'
KINDS = ("image_url", "video_url", "file")


def sniffers(data: bytes) -> None:
    """What a file is, how large, and whether it is whole."""
    kind = sniff.kind_of(data)
    assert kind is None or kind in sniff.NAMES
    size = sniff.size_of(kind or "", data)
    assert size is None or all(0 <= side < 2**32 for side in size)
    assert isinstance(sniff.is_whole_png(data), bool)
    for container in ("mp4", "webm"):
        assert isinstance(sniff.is_whole_video(BytesIO(data), container), bool)
    with suppress(ApiError):
        check_size(*announced_size(data), Bounds())


def data_urls(data: bytes) -> None:
    """data: URLs and base64."""
    text = data.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode("utf-8")
    for wanted in ("image", "video", "file"):
        with suppress(ApiError):
            source_of("data:" + text, "url", wanted)
    with suppress(ApiError):
        assert decode_base64(text, "data")


def urls(data: bytes) -> None:
    """The URL guard: what passes has a host that means the same when it is read again, and a port that is allowed."""
    text = data.decode("utf-8", "replace")
    for candidate in (text, "http://" + text):
        with suppress(fetch.FetchFailed):
            address = fetch.parse_url(candidate)
            assert address.port in fetch.PORTS
            assert not set(address.host) & set("@\\/?# \t\r\n%")
            assert not set(address.target) & set(" \t\r\n")
    fetch.denied(text, ())


def bodies(data: bytes) -> None:
    """Whole bodies, as they come."""
    with suppress(ApiError):
        decode_object(data)
    with suppress(ApiError):
        openai_chat.decode_request(data, request_id="r", now=0)
    with suppress(ApiError):
        asked = openai_responses.decode_request(data, request_id="r", now=0)
        whole = openai_responses.completed(asked, [], {})
        kept, media = openai_items.apart(whole.items)
        assert media.keys() == openai_items.media_of(kept)
        openai_responses.completed(asked, openai_items.together(kept, media), {})
    with suppress(ApiError):
        generate_content.decode_request(data, model="m", request_id="r", now=0)
    with suppress(ApiError):
        anthropic_messages.decode_request(data, request_id="r", now=0)


def parts(data: bytes) -> None:
    """Values of the fuzzer's own where a part of a message stands, on every wire."""
    text = data.decode("utf-8", "ignore")
    with suppress(ValueError, RecursionError):
        json.loads(text)
        for kind in KINDS:
            with suppress(ApiError):
                part = f'{{"type":"{kind}","{kind}":{text}}}'
                openai_chat.decode_request((CHAT % part).encode(), request_id="r", now=0)
        with suppress(ApiError):
            openai_chat.decode_request((CHAT % text).encode(), request_id="r", now=0)
        with suppress(ApiError):
            body = f'{{"contents":[{{"parts":[{text}]}}]}}'
            generate_content.decode_request(body.encode(), model="m", request_id="r", now=0)
        with suppress(ApiError):
            body = f'{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":[{text}]}}]}}'
            anthropic_messages.decode_request(body.encode(), request_id="r", now=0)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (sniffers, data_urls, urls, bodies, parts)
}
SEEDS: dict[str, list[bytes]] = {
    "sniffers": [
        b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\1mdat\0\0\0\0\0\0\0\x20",
        b"\x1a\x45\xdf\xa3\x84aaaa\x18\x53\x80\x67\x88",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"GIF89a",
    ],
    "data_urls": [b"image/png;base64,aGk=", b";base64,", b"video/jpeg;base64,aGk=,aGk="],
    "urls": [b"http://1.1.1.1/", b"https://example.com:443/a?b#c", b"http://[::ffff:1.2.3.4]/", b"http://a@b/"],
    "bodies": [
        b'{"model":"m","input":[{"role":"user","content":[{"type":"input_image","image_url":"data:;base64,aGk="}]}]}',
        (CHAT % '{"type":"text","text":"Hi"}').encode(),
        b'{"contents":[{"parts":[{"text":"Hi"}]}]}',
    ],
    "parts": [
        b'{"url":"data:video/mp4;base64,aGk=","fps":1,"start":2,"end":3,"detail":"low","max_pixels":9}',
        b'{"type":"video","video":["data:image/png;base64,aGk="],"fps":2}',
        b'{"file_id":"file-1","pages":"1-3","filename":"a/b.pdf"}',
        b'{"fileData":{"fileUri":"files/a"},"videoMetadata":{"startOffset":"1s","fps":1},"mediaResolution":"x"}',
        b'{"inlineData":{"mimeType":"a","data":"aGk="},"documentMetadata":{"startPage":1,"endPage":2}}',
    ],
}


def main() -> None:
    name, corpus = sys.argv[1], Path(".build/corpus") / sys.argv[1]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
