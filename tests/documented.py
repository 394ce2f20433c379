"""What a server has answered, by its log, held against its description of itself."""

import json
import re

from qwen3vl_compat.server.openapi import document

LINE = re.compile(r"\bid=\w+ key=.* status=(\d{3}) ([A-Z]+) (/\S*)$", re.MULTILINE)
GONE = "499"
"""Not an answer: nobody was left to hear it."""


def undocumented(log: str) -> set[str]:
    """Answers of a log that the description does not know, as `418 GET /v1/tea`; what is no operation is left out."""
    known = {
        (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), method.upper()): operation["responses"].keys()
        for path, methods in json.loads(document())["paths"].items()
        for method, operation in methods.items()
    }
    found: set[str] = set()
    for status, method, path in {match.groups() for match in LINE.finditer(log)}:
        told = [statuses for (form, each), statuses in known.items() if each == method and form.fullmatch(path)]
        if told and status != GONE and not any(status in statuses for statuses in told):
            found.add(f"{status} {method} {path}")
    return found
