"""Pages of a PDF as pictures, by PDFium. Only ever run in a decoding child, one document at a time."""

from io import BytesIO
from typing import Any, BinaryIO, cast

import pypdfium2  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.image import digest_of, fitted, grid_for, patches_of
from qwen3vl_compat.media.jobs import PagesJob, Pictures
from qwen3vl_compat.media.limits import LONGEST_SIDE
from qwen3vl_compat.messages import Picture

SCALE = 2.0
"""Pixels for a point, 1/72 inch: 144 to the inch."""
MOST_CHARACTERS = 20_000
"""Of one page's text layer."""
TOGETHER = 4
"""Pages in one job."""


def undecodable(why: str = "it is damaged, cut short or protected by a password") -> InvalidRequest:
    """The one refusal of documents that do not open."""
    return InvalidRequest(f"the PDF cannot be read: {why}", code="invalid_pdf")


def pages(file: BinaryIO, job: PagesJob) -> Pictures:
    """The wanted pages, or the first of them. InvalidRequest: `invalid_pdf`, `too_many_pages`."""
    try:
        document: Any = pypdfium2.PdfDocument(file)
        document.init_forms()  # or what has been filled in would not be drawn
        count = len(document)
    except Exception:
        raise undecodable() from None
    last = _last(count, job)
    shown = range(job.first, min(last, job.first + TOGETHER - 1) + 1)
    pictures: list[Picture] = []
    texts: list[str] = []
    for number in shown:
        try:
            page = document[number - 1]
            pictures.append(_drawn(page, number, job))
            texts.append(_text(page) if job.text else "")
            page.close()
        except InvalidRequest:
            raise
        except Exception:
            raise undecodable(f"page {number} is damaged") from None
    return Pictures(pictures=tuple(pictures), numbers=tuple(shown), texts=tuple(texts), last=last)


def _last(count: int, job: PagesJob) -> int:
    if not count:
        raise undecodable("it has no pages")
    if count > job.most_in_all:
        fault = f"the PDF has {count:,} pages; at most {job.most_in_all:,} are accepted"
        raise InvalidRequest(fault, code="too_many_pages")
    if job.first > count:
        raise InvalidRequest(f"the PDF has {count} pages; page {job.first} is not among them", param="pages")
    last = min(job.last or count, count)
    if last - job.first + 1 > job.most:
        fault = f"{last - job.first + 1} pages are asked for; at most {job.most} are accepted in one request"
        raise InvalidRequest(fault, param="pages", code="too_many_pages")
    return last


def _drawn(page: Any, number: int, job: PagesJob) -> Picture:
    """The page at 144 dots to the inch, or less if it is large, straight at the size of its grid."""
    wide, tall = page.get_size()
    if not (0.1 <= wide <= 1e6 and 0.1 <= tall <= 1e6) or max(wide, tall) > 200 * min(wide, tall):
        raise undecodable(f"page {number} is {wide:.0f} by {tall:.0f} points")
    scale = min(SCALE, LONGEST_SIDE / max(wide, tall))
    width, height = max(4, round(wide * scale)), max(4, round(tall * scale))
    rows, columns = grid_for(width, height, job.spec)
    scale = max(columns * job.spec.patch_size / wide, rows * job.spec.patch_size / tall)
    bitmap = page.render(scale=min(scale, SCALE), fill_color=(255, 255, 255, 255), rev_byteorder=True)
    image: Image.Image = bitmap.to_pil().convert("RGB")
    patches = patches_of([fitted(image, rows, columns, job.spec)], job.spec)
    digest = digest_of(b"", job.spec, job.digest, number)
    return Picture(digest, patches, (1, rows, columns), width, height)


def _text(page: Any) -> str:
    layer = page.get_textpage()
    text: str = layer.get_text_range(count=min(MOST_CHARACTERS, layer.count_chars()))
    return text.replace("\0", "").replace("\r\n", "\n").encode("utf-8", "ignore").decode("utf-8").strip()


def blank() -> BinaryIO:
    """A document of one empty page."""
    out, document = BytesIO(), cast("Any", pypdfium2.PdfDocument).new()
    document.new_page(72, 72)
    document.save(out)
    out.seek(0)
    return out
