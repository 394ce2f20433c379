"""The inside of a `<tool_call>` as it comes: its name at once, its arguments as far as they are surely theirs."""

import json
import re

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)', re.DOTALL)
_TAIL = re.compile(r"\s*\}?\s*\Z")


class CallReader:
    """Reads `{"name": "f", "arguments": {...}}`, the form Qwen's chat templates teach; pure."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Known once the head is read."""
        self._held = ""

    def push(self, text: str) -> str:
        """Add text; returns what of it are arguments for certain: the last brace may be the call's own."""
        self._held += text
        if self.name is None:
            head = _HEAD.match(self._held)
            if head is None:
                return ""
            self.name = json.loads(head[1], strict=False)
            self._held = self._held[head.end() :]
        tail = _TAIL.search(self._held)
        end = tail.start() if tail else len(self._held)
        shown, self._held = self._held[:end], self._held[end:]
        return shown
