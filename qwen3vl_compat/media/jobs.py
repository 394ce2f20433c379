"""What the server and its decoding children say to each other."""

import struct

from msgspec import Struct

from qwen3vl_compat.media.limits import LONGEST_SIDE, Bounds, VisionSpec
from qwen3vl_compat.messages import Picture

HEAD = struct.Struct("!I")
"""Before a job: its bytes."""
ANSWER = struct.Struct("!IQ?")
"""Before a reply: its bytes, those of the patches written, and whether this was the child's last job."""


MOST_WRITTEN = 2**28
"""Bytes of patches one job may give."""


class PictureJob(Struct, frozen=True, kw_only=True, tag="picture"):
    """Decode one picture."""

    spec: VisionSpec
    bounds: Bounds
    longest_side: int = LONGEST_SIDE


class LookJob(Struct, frozen=True, kw_only=True, tag="look"):
    """See what a video holds, and choose the frames to be shown of it."""

    container: str
    spec: VisionSpec
    bounds: Bounds
    fps: float
    start: float | None = None
    """Seconds from the video's beginning, as `end`."""
    end: float | None = None


class Shot(Struct, frozen=True, array_like=True):
    """One frame to decode: the time stamp of the key frame to begin at, its own, and when it is shown in seconds."""

    key: int
    stamp: int
    seconds: float


class ClipJob(Struct, frozen=True, kw_only=True, tag="clip"):
    """Decode these frames of a video, in pairs: an odd last one is paired with itself."""

    container: str
    spec: VisionSpec
    grid: tuple[int, int]
    digest: str
    shots: tuple[Shot, ...]


class FramesJob(Struct, frozen=True, kw_only=True, tag="frames"):
    """Decode a video that came as pictures, or an even number of them: one file behind the other."""

    spec: VisionSpec
    bounds: Bounds
    lengths: tuple[int, ...]
    """Bytes of each."""
    count: int
    """Frames of the whole video."""
    first: int
    """How many of them came before these."""
    grid: tuple[int, int] | None
    """Rows and columns of patches; None where the first of these frames decides it."""


class PagesJob(Struct, frozen=True, kw_only=True, tag="pages"):
    """Render pages of a document, counted from 1 and with both ends; a part of them if all are too much for one job."""

    spec: VisionSpec
    first: int
    last: int | None
    most: int
    """Pages that may be asked for."""
    most_in_all: int
    """Pages the document may have."""
    text: bool
    """Bring the text layer along."""
    digest: str


Job = PictureJob | LookJob | ClipJob | FramesJob | PagesJob


class Pictures(Struct, frozen=True, kw_only=True, tag="pictures"):
    """What was made, without the patches, which follow; for pages also their numbers and texts."""

    pictures: tuple[Picture, ...]
    numbers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    last: int = 0
    """The last page that is wanted; it may not be among these yet."""


class Footage(Struct, frozen=True, kw_only=True, tag="footage"):
    """What a video is: its upright size in pixels, and jobs' worth of frames to show."""

    width: int
    height: int
    parts: tuple[tuple[Shot, ...], ...]


class Refused(Struct, frozen=True, tag="refused"):
    """Why not, for the client."""

    message: str
    code: str
    about: str = ""
    """`pages` or `start`, if that is at fault and not the medium."""


Reply = Pictures | Footage | Refused


def refusal(job: Job) -> Refused:
    """What is said of a medium on which its decoder failed, in whatever way."""
    match job:
        case PictureJob():
            return Refused("the picture cannot be decoded: it is damaged or cut short", "invalid_image")
        case FramesJob():
            return Refused("the frames cannot be decoded: one is damaged or cut short", "invalid_image")
        case PagesJob():
            return Refused("the PDF cannot be read: it is damaged, protected or too complex", "invalid_pdf")
        case LookJob() | ClipJob():
            return Refused("the video cannot be decoded: it is damaged, cut short or too complex", "invalid_video")
