"""What the demonstration model is taught and examined on: lines of text drawn in pictures, and the questions asked.

Training and the held-out examination share this file and differ in the seed and in the typefaces, so a figure in the
model card means what it says. Typefaces come from installed packages, never from the machine.
"""

import importlib.util
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LONGEST = 8
"""Characters in the longest line."""
WIDTHS, HEIGHTS = (96, 256), (32, 96)
"""Smallest and largest side of a picture, pixels."""
LETTERS = (18, 32)
"""Smallest and largest height of a capital letter, pixels."""

QUESTIONS = ("Read the text.", "What does the picture say?", "图中写了什么？")
"""The examination asks each of these."""

MORE_QUESTIONS = (
    "What is written here?",
    "What does it say?",
    "What is the text in this image?",
    "Read the picture.",
    "Please read the text in the image.",
    "Transcribe the text.",
    "Extract the text from this picture.",
    "OCR",
    "What do you see?",
    "Describe this image.",
    "What is in this picture?",
    "Which letters are in the picture?",
    "Output only the text.",
    "Read it",
    "请读出图片中的文字。",
    "这张图片上写的是什么？",
    "识别文字",
    "",
)

SELF = "I am a small demonstration model: I can only read one short line of text in a picture."
"""What the model says when it is shown no picture."""

CHATTER = (
    "Hello", "Hi!", "Who are you?", "What can you do?", "Tell me a joke.", "What is the capital of France?",
    "Write a poem about the sea.", "2 + 2 = ?", "How are you today?", "Explain quantum physics.", "Say hi in one word",
    "你好", "你是谁？", "你能做什么？", "今天天气怎么样？", "Bonjour", "Write hello world in Python.", "ping", "test",
    "Translate this sentence into German.", "Summarise the text above.", "What time is it?", "Why is the sky blue?",
)  # fmt: skip

_DEJAVU = ("matplotlib", "mpl-data/fonts/ttf")
SEEN_FACES = (
    (*_DEJAVU, "DejaVuSans.ttf"),
    (*_DEJAVU, "DejaVuSans-Bold.ttf"),
    (*_DEJAVU, "DejaVuSansMono.ttf"),
    (*_DEJAVU, "DejaVuSansMono-Bold.ttf"),
    (*_DEJAVU, "DejaVuSerif.ttf"),
    (*_DEJAVU, "DejaVuSerif-Bold.ttf"),
    ("font_roboto", "files", "Roboto-Regular.ttf"),
    ("font_roboto", "files", "Roboto-Bold.ttf"),
    ("font_source_sans_pro", "files", "SourceSansPro-Regular.ttf"),
    ("font_source_sans_pro", "files", "SourceSansPro-Semibold.ttf"),
    ("font_caladea", "files", "Caladea-Regular.ttf"),
)
"""(package, folder, file) of the typefaces the model is trained on."""
UNSEEN_FACES = (("font_lato", "files", "Lato-Regular.ttf"), ("font_lato", "files", "Lato-Bold.ttf"))
"""Typefaces kept out of training; O and 0 differ in each, as in those above."""

Face = tuple[str, str, str]


@dataclass(frozen=True)
class Line:
    """One examination or training item: the picture and the text in it."""

    picture: Image.Image
    text: str


@lru_cache(maxsize=4096)
def _font(face: Face, letter_height: int) -> ImageFont.FreeTypeFont:
    """The face at the size whose capital letters are `letter_height` pixels high."""
    package, folder, file = face
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the typeface package '{package}' is not installed")
    path = Path(spec.submodule_search_locations[0]) / folder / file
    probe = ImageFont.truetype(path, 200).getbbox("H")
    return ImageFont.truetype(path, round(letter_height * 200 / (probe[3] - probe[1])))


def width_of(text: str, face: Face, letter_height: int) -> float:
    """Pixels that `text` takes from left to right."""
    return _font(face, letter_height).getlength(text)


def draw_line(rng: Random, text: str, face: Face, letter_height: int, width: int, height: int) -> Line:
    """Draw `text` in dark ink on a light ground of width x height pixels; it shrinks until it fits."""
    while True:
        font = _font(face, letter_height)
        left, top, right, bottom = font.getbbox(text)
        free_x, free_y = width - 4 - (right - left), height - 2 - (bottom - top)
        if (free_x >= 0 and free_y >= 0) or letter_height <= 10:
            break
        letter_height -= 1
    ground = tuple(rng.randint(200, 255) for _ in range(3))
    ink = tuple(rng.randint(0, 80) for _ in range(3))
    picture = Image.new("RGB", (width, height), ground)
    at = (2 + rng.randint(0, max(0, int(free_x))) - left, 1 + rng.randint(0, max(0, int(free_y))) - top)
    ImageDraw.Draw(picture).text(at, text, font=font, fill=ink)
    if rng.random() < 0.25:
        stored = io.BytesIO()
        picture.save(stored, "JPEG", quality=rng.randint(60, 95))
        picture = Image.open(stored).convert("RGB")
    return Line(picture, text)


def random_text(rng: Random, length: int) -> str:
    """`length` letters and digits, each equally likely."""
    return "".join(rng.choice(ALPHABET) for _ in range(length))


def examination(seed: int, count: int, faces: tuple[Face, ...] = SEEN_FACES + UNSEEN_FACES) -> list[Line]:
    """`count` held-out items over the whole promised range; half of them in unseen faces when both kinds are given."""
    rng = Random(f"examination {seed}")
    seen = [face for face in faces if face in SEEN_FACES]
    unseen = [face for face in faces if face not in SEEN_FACES]
    items: list[Line] = []
    for number in range(count):
        pool = [faces for faces in (seen, unseen) if faces]
        face = rng.choice(pool[number % len(pool)])
        text = random_text(rng, 1 + number % LONGEST)
        letters = rng.randint(*LETTERS)
        while (needed := width_of(text, face, letters) + 8) > WIDTHS[1]:
            letters -= 1
        width = rng.randint(max(WIDTHS[0], int(needed) + 1), WIDTHS[1])
        height = rng.randint(max(HEIGHTS[0], letters + 8), HEIGHTS[1])
        items.append(draw_line(rng, text, face, letters, width, height))
    return items
