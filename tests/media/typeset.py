"""Documents of real text, made for tests."""

from collections.abc import Sequence

from tests.media.hostile import pdf, stream


def typeset(pages: Sequence[str], *, width: int = 96, height: int = 32, size: int = 18) -> bytes:
    """A PDF with these words in Helvetica, one page each; sizes in points."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [" + kids + b"] /Count %d >>" % len(pages),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents %d 0 R " % (width, height, 5 + 2 * number)
        objects += [
            page + b"/Resources << /Font << /F 3 0 R >> >> >>",
            stream(b"BT /F %d Tf 6 %d Td (%s) Tj ET" % (size, (height - size * 0.7) // 2, text.encode())),
        ]
    return pdf(objects)


def filled_form() -> bytes:
    """A page of 200 by 200 points with a field on all of it that has been filled in with black."""
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [4 0 R] >> >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Annots [4 0 R] >>",
            b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /Rect [0 0 200 200] /F 4 /P 3 0 R /AP << /N 5 0 R >> >>",
            stream(b"0 g 0 0 200 200 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 200 200]"),
        ]
    )
