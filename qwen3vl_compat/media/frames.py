"""Frames out of a video file, by FFmpeg. Only ever run in a decoding child.

The container's format is the one our own look at the first bytes found: left to itself FFmpeg takes a list of files or
an address for a video, and opens them.
"""

from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.image import check_size, digest_of, fitted, patches_of
from qwen3vl_compat.media.jobs import ClipJob, Footage, LookJob, Shot
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.media.sniff import is_whole_video
from qwen3vl_compat.media.video import frames_wanted, sampled
from qwen3vl_compat.messages import Picture

CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"})
"""The only ones that are decoded."""
MOST_STREAMS = 32
MOST_PACKETS = 2_000_000
"""Of a video's stream; 9 hours at 60 frames a second."""
SHOWN = 8
"""Frames that could be decoded in the time it takes to find one that is shown, turn it into RGB and make it smaller."""
PART_PIXELS = 1_250_000_000
"""What one job decodes, about 2.5 s of H.264 on one core, as 500 million pixels take a second."""
FRAME_PIXELS = 5_500_000_000
"""What a job may decode where a new one would have to begin far back, at the same key frame; about 11 s."""
ALL_PIXELS = 30_000_000_000
"""What all jobs of a video decode, about a minute; of a video that would cost more, only key frames are shown."""
FEWEST = 16
"""One of so many frames wanted must be shown at least, where key frames alone can be."""
_FORMATS = {"mp4": "mp4", "webm": "matroska"}
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def undecodable(why: str = "it is damaged or cut short") -> InvalidRequest:
    """The one refusal of videos that do not decode."""
    return InvalidRequest(f"the video cannot be decoded: {why}", code="invalid_video")


def _too_far_apart() -> InvalidRequest:
    return undecodable("its key frames are too far apart for its length; encode it with more of them")


class _Film:
    """An opened container and its one stream of pictures."""

    def __init__(self, file: BinaryIO, container: str) -> None:
        self.container: Any = av.open(file, format=_FORMATS[container], metadata_errors="ignore")
        streams = list(self.container.streams)
        films = [stream for stream in self.container.streams.video if not _is_cover(stream)]
        if len(streams) > MOST_STREAMS:
            raise undecodable(f"it holds {len(streams)} streams; at most {MOST_STREAMS} are accepted")
        if not films:
            raise undecodable("it holds no pictures")
        self.stream: Any = films[0]
        name = self.stream.codec_context.codec.canonical_name
        if name not in CODECS:
            raise undecodable(f"its codec is none of {', '.join(sorted(CODECS))}")
        self.stream.codec_context.thread_count = 1
        self.stream.thread_type = "NONE"

    def packets(self) -> Iterator[tuple[int, bool]]:
        """(Time stamp, whether a key frame) of each frame, in the file's order, without decoding any."""
        for count, packet in enumerate(self.container.demux(self.stream)):
            if count > MOST_PACKETS:
                raise undecodable(f"it has more than {MOST_PACKETS:,} frames")
            if packet.pts is not None and packet.size and not packet.is_discard:
                yield packet.pts, packet.is_keyframe

    def frames_from(self, stamp: int) -> Iterator[Any]:
        """Decoded frames from the key frame at or before this time stamp."""
        self.container.seek(stamp, stream=self.stream, backward=True, any_frame=False)
        yield from self.container.decode(self.stream)


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(stream.disposition).lower()


def look(file: BinaryIO, job: LookJob) -> Footage:
    """What the video is and which of its frames to show. InvalidRequest: `invalid_video`, and those of `check_size`."""
    if not is_whole_video(file, job.container):
        raise undecodable()
    file.seek(0)
    film = _Film(file, job.container)
    context = film.stream.codec_context
    width, height = context.width, context.height
    if not width or not height:
        raise undecodable()
    check_size(width, height, job.bounds)
    packets = list(film.packets())
    if not packets:
        raise undecodable("it holds no frames")
    stamps = np.array([stamp for stamp, _ in packets], dtype=np.int64)
    keys = np.sort(stamps[[key for _, key in packets]])
    stamps = np.unique(stamps)
    if not len(keys) or keys[0] > stamps[0]:
        keys = np.concatenate([stamps[:1], keys])
    base = float(film.stream.time_base)
    times = (stamps - stamps[0]) * base
    inside = _within(times, job)
    rate = _rate(times[inside], film.stream.average_rate)
    count = frames_wanted(len(inside), rate, job.fps, job.spec.video)
    chosen = inside[sampled(times[inside], count)]
    turned = _first_rotation(film, int(stamps[0])) in (90, 270)
    parts = _parts(stamps, np.maximum(times, job.start or 0.0), keys, chosen, width * height)
    return Footage(width=height if turned else width, height=width if turned else height, parts=parts)


def _within(times: NDArray[np.float64], job: LookJob) -> NDArray[np.int64]:
    """The frames between the wanted start and end; before them the one on the screen at the start, if it stays long."""
    start, end = job.start or 0.0, times[-1] if job.end is None else job.end
    if start > times[-1] + 1:
        raise InvalidRequest(
            f"the video lasts {times[-1]:.1f} seconds and ends before the start asked for", param="start"
        )
    inside = np.flatnonzero((times >= start) & (times <= end))
    if not len(inside) or times[inside[0]] > start + 0.5 / job.fps:
        held = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        inside = np.union1d([held], inside)
    return inside


def _rate(times: NDArray[np.float64], announced: Fraction | None) -> float:
    """Frames a second: what the container says, to the letter, if that is about what there are."""
    found = (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else 1.0
    return float(announced) if announced and abs(announced / found - 1) < 0.01 else found


def _first_rotation(film: _Film, stamp: int) -> int:
    for frame in film.frames_from(stamp):
        return int(frame.rotation) % 360
    raise undecodable()


def _parts(
    stamps: NDArray[np.int64],
    times: NDArray[np.float64],
    keys: NDArray[np.int64],
    chosen: NDArray[np.int64],
    pixels: int,
) -> tuple[tuple[Shot, ...], ...]:
    """The chosen frames as jobs of bounded cost, an even number of frames in each but the last.

    Where key frames are nearly as dense as the frames wanted, those are shown: the others would cost all in between.
    """
    places = np.searchsorted(stamps, keys)
    if _cost(places, chosen) * pixels > PART_PIXELS:
        near = places[_nearest(places, chosen)]
        spread = np.diff(chosen).max() if len(chosen) > 1 else 0
        chosen = np.unique(np.where(np.abs(near - chosen) * 2 <= spread, near, chosen))
        if _cost(places, chosen) * pixels > ALL_PIXELS:
            wanted, chosen = len(chosen), np.unique(near)
            if len(chosen) < max(wanted / FEWEST, min(wanted, 4)):
                raise _too_far_apart()
    parts: list[tuple[Shot, ...]] = []
    part: list[Shot] = []
    spent, before = 0, -1
    for index in chosen.tolist():
        key = int(places[np.searchsorted(places, index, side="right") - 1])
        anew, steps = index - key + SHOWN + 1, index - (before if before >= key and part else key) + SHOWN + 1
        near_by = anew * pixels <= PART_PIXELS // 2 or (spent + steps) * pixels > FRAME_PIXELS
        if part and len(part) % 2 == 0 and near_by and (spent + steps) * pixels > PART_PIXELS:
            parts.append(tuple(part))
            part, spent, steps = [], 0, anew
        if (spent + steps) * pixels > FRAME_PIXELS:
            raise _too_far_apart()
        part.append(Shot(int(stamps[key]), int(stamps[index]), float(times[index])))
        spent, before = spent + steps, index
    parts.append(tuple(part))
    return tuple(parts)


def _cost(places: NDArray[np.int64], chosen: NDArray[np.int64]) -> int:
    """Frames to decode for all chosen, each from its key frame on or from the one chosen before, and to show them."""
    begin = places[np.searchsorted(places, chosen, side="right") - 1]
    before = np.concatenate([[-1], chosen[:-1]])
    return int((chosen - np.maximum(begin, before) + 1 + SHOWN).sum())


def _nearest(places: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    after = np.clip(np.searchsorted(places, chosen), 1, max(1, len(places) - 1))
    after = np.minimum(after, len(places) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(chosen - places[before] <= places[after] - chosen, before, after)


def clip(file: BinaryIO, job: ClipJob) -> Iterator[Picture]:
    """The job's frames in pairs. InvalidRequest `invalid_video`."""
    film = _Film(file, job.container)
    waiting: list[tuple[int, Image.Image]] = []
    for stamp, image in _shown(film, job):
        waiting.append((stamp, image))
        if len(waiting) == 2:
            yield pair(waiting, job.spec, job.digest)
            waiting = []
    if waiting:
        yield pair([waiting[0], waiting[0]], job.spec, job.digest)


def _shown(film: _Film, job: ClipJob) -> Iterator[tuple[int, Image.Image]]:
    """Each wanted frame at its grid's size; the last one there is in place of any that does not decode."""
    frames: Iterator[Any] | None = None
    begun, last = 0, None
    rows, columns = job.grid
    for shot in job.shots:
        if frames is None or shot.key > begun:
            frames, begun = film.frames_from(shot.key), shot.key
        for frame in frames:
            if frame.pts is None:
                continue
            begun = max(begun, frame.pts)
            if frame.pts >= shot.stamp:
                last = fitted(_upright(frame), rows, columns, job.spec)
                break
        if last is None:
            raise undecodable()
        yield shot.stamp, last


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    turn = _TURNS.get(int(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def pair(frames: list[tuple[int, Image.Image]], spec: VisionSpec, digest: str) -> Picture:
    """Two frames, each with a number that tells it from the others of its video, as one picture."""
    images = [image for _, image in frames]
    width, height = images[0].size
    grid = (1, height // spec.patch_size, width // spec.patch_size)
    name = digest_of(b"", spec, digest, grid, *(number for number, _ in frames))
    return Picture(name, patches_of(images, spec), grid, width, height, frames=2)


def blank() -> BinaryIO:
    """A video of two grey frames."""
    out = BytesIO()
    library: Any = av
    with library.open(out, "w", format="mp4") as made:
        stream = made.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 64
        grey = library.VideoFrame.from_image(Image.new("RGB", (64, 64), "grey"))
        for packet in [*stream.encode(grey), *stream.encode(grey), *stream.encode(None)]:
            made.mux(packet)
    out.seek(0)
    return out
