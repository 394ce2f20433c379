"""What may be shown to the model, and what may be uploaded for it."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from qwen3vl_compat.settings.types import Positive, Seconds, Web, check_networks


class MediaLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may come as a picture, video or document; a tenant may have limits of its own."""

    types: tuple[Literal["jpeg", "png", "webp", "gif", "mp4", "webm", "pdf"], ...] = (
        "jpeg",
        "png",
        "webp",
        "mp4",
        "webm",
        "pdf",
    )
    """Kinds of files, told by their first bytes; gif is another, of which the first frame is shown."""
    max_images: Annotated[int, Meta(ge=0)] = 100
    """Pictures in one request, as `max_videos`, and `max_pages` of documents."""
    max_videos: Annotated[int, Meta(ge=0)] = 10
    max_pages: Annotated[int, Meta(ge=0)] = 100
    max_image_bytes: Positive = 10 * 2**20
    max_pdf_bytes: Positive = 50 * 2**20
    max_pdf_pages: Positive = 500
    """Pages a document may have, whether they are asked for or not."""
    max_inline_video_bytes: Positive = 64 * 2**20
    """Of a video in the request or behind a URL; `max_video_bytes` of one that was uploaded."""
    max_video_bytes: Positive = 2 * 2**30
    max_fetched_bytes: Positive = 128 * 2**20
    """Of all that one request has fetched from URLs."""
    max_pixels: Positive = 50_000_000
    """Of one picture, or one frame, before it is made smaller; `max_total_pixels` of all pictures in a request."""
    max_total_pixels: Positive = 400_000_000
    min_side: Positive = 4
    max_side: Positive = 30_000
    max_aspect: Annotated[int, Meta(ge=1, le=200)] = 200
    """How many times longer one side may be than the other."""
    longest_side: Annotated[int, Meta(ge=32, le=8192)] = 2048
    """Pixels that a picture's longer side keeps."""
    fps: Annotated[float, Meta(gt=0, le=60)] = 2.0
    """Frames looked at for each second of a video, when the request does not say."""
    max_frames: Annotated[int, Meta(ge=2, le=4096)] = 768
    pdf_text: bool = False
    """Give the model a document's own text too, beside its pages' pictures."""


class MediaSettings(MediaLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may come as media, and what looking at it may cost."""

    allow_networks: tuple[str, ...] = ()
    """Networks, as 10.0.0.0/8, that URLs may lead to although they are not public."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that URLs may lead to."""
    fetch_seconds: Seconds = 10
    memory: Annotated[float, Meta(ge=0.1)] = 4.0
    """GiB that the media of all requests together may take in the server's own process, and one tenant's at most four
    times what it leaves free; beyond it, 503."""
    children: Annotated[int, Meta(ge=1, le=64)] = 2
    """Processes that decode; each job of theirs has `child_memory` GiB and `child_seconds`, and as much CPU time."""
    child_memory: Annotated[float, Meta(ge=0.5)] = 2.0
    child_seconds: Annotated[float, Meta(ge=1, le=600)] = 15
    child_jobs: Positive = 200
    """Jobs after which a process is replaced."""

    def __post_init__(self) -> None:
        check_networks("allow_networks", self.allow_networks)


class FileSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Uploaded files: where they lie, how much a tenant may keep and for how long, in bytes and seconds."""

    enabled: bool = True
    store: Annotated[str, Meta(pattern=r"^(s3://[^/\s]+(/\S*)?)?$", description="a place as s3://bucket/prefix")] = ""
    """s3://bucket/prefix, with credentials from the usual AWS_* variables; empty is a folder in the state folder."""
    s3_endpoint: Web = ""
    """Another service than Amazon's that speaks S3, as https://storage.example.org."""
    s3_region: str = ""
    public_url: Web = ""
    """How clients reach this server, as https://api.example.org; empty is what their requests' Host says."""
    types: tuple[Literal["jpeg", "png", "webp", "gif", "mp4", "webm", "pdf"], ...] = (
        "jpeg",
        "png",
        "webp",
        "mp4",
        "webm",
        "pdf",
    )
    max_bytes: Positive = 2 * 2**30
    """Of one file; `tenant_bytes` of all that a tenant has or is just uploading, `tenant_files` is their number."""
    tenant_bytes: Positive = 20 * 2**30
    tenant_files: Positive = 10_000
    life: Positive = 48 * 3600
    """A file is removed after this long, or what the request says instead, up to `max_life`."""
    max_life: Positive = 30 * 86_400
    upload_life: Positive = 3600
    """An upload in parts is given up when none has come for this long."""
    part_bytes: Annotated[int, Meta(ge=2**16, le=2**26)] = 2**20
    """Bytes gathered in memory before they are written."""
    slowest: Positive = 100_000
    """Bytes a second that a file must come at, `server.body_total` seconds granted."""
    sweep: Seconds = 60
    """Between two looks for what has expired."""
