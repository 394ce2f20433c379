"""A multipart form with one file in it, taken apart as it comes in: sans I/O, and nothing is kept but short fields."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from qwen3vl_compat.errors import InvalidRequest

MOST_PARTS, LONGEST_VALUE = 32, 1024
"""Parts of a form, and bytes of a field that is no file."""
OVERHEAD = 64 * 1024
"""Bytes that a form may have beside its file."""


class Form:
    """`feed` it what comes; the file's bytes are handed out, the fields are kept."""

    def __init__(self, content_type: str) -> None:
        """`content_type` is the request's own header; raises InvalidRequest where it is not a form's."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            message = "The body must be sent with Content-Type: multipart/form-data."
            raise InvalidRequest(message, status=415, code="unsupported_media_type")
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:
            raise _bad("the Content-Type names no boundary of 1 to 70 characters")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.declared_type = ""
        self._name, self._in_file, self._parts = "", False, 0
        self._headers: dict[str, bytes] = {}
        self._header, self._value = b"", b""
        self._kept: list[bytes] = []
        self._came: list[bytes] = []
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._on_field,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end_part,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> bytes:
        """The bytes of the file among these; raises InvalidRequest for what is no form."""
        self._came = []
        try:
            self._parser.write(data)
        except FormParserError:
            raise _bad("its parts cannot be told apart") from None
        return b"".join(self._came)

    def finish(self) -> None:
        """All has come; raises InvalidRequest if the form does not end, or holds no file."""
        if not self._ended:
            raise _bad("it breaks off")
        if self.filename is None:
            raise InvalidRequest("file: must be given", param="file", code="missing_required_parameter")

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _bad(f"it has more than {MOST_PARTS} parts")
        self._headers, self._header, self._value, self._kept = {}, b"", b"", []

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._header.decode("latin-1").strip().lower()] = self._value
        self._header, self._value = b"", b""

    def _on_headers(self) -> None:
        disposition = parse_options_header(self._headers.get("content-disposition", b""))[1]
        self._name = _text(disposition.get(b"name", b""))
        if not self._name:
            raise _bad("a part has no name")
        if self._headers.get("content-transfer-encoding", b"binary").strip().lower() not in _AS_IT_IS:
            raise _bad("a part is encoded; send its bytes as they are")
        filename = disposition.get(b"filename")
        self._in_file = self._name == "file"
        if self._in_file != (filename is not None):
            raise InvalidRequest("file: there must be one file, in the field 'file'", param="file")
        if filename is not None:
            if self.filename is not None:
                raise InvalidRequest("file: must be given once", param="file")
            self.filename = _text(filename)
            self.declared_type = _text(self._headers.get("content-type", b"")).partition(";")[0].strip()[:100]
        elif self._name in self.fields:
            raise InvalidRequest(f"{self._name[:60]}: must be given once", param=self._name[:60])

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._came.append(data[start:end])
            return
        self._kept.append(data[start:end])
        if sum(map(len, self._kept)) > LONGEST_VALUE:
            raise InvalidRequest(f"{self._name[:60]}: is longer than {LONGEST_VALUE} bytes", param=self._name[:60])

    def _end_part(self) -> None:
        if not self._in_file:
            self.fields[self._name] = _text(b"".join(self._kept))

    def _on_end(self) -> None:
        self._ended = True


_AS_IT_IS = (b"binary", b"8bit", b"7bit")


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _bad("a name or field is not UTF-8") from None
    if "\0" in text:  # which databases differ about
        raise _bad("a name or field holds a NUL character")
    return text


def _bad(fault: str) -> InvalidRequest:
    return InvalidRequest(f"The form cannot be read: {fault}.", code="invalid_form")
