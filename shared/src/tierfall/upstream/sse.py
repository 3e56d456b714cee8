"""An incremental parser for server-sent events: bytes in, split anywhere, whole ``data`` payloads out.

Source of the rules: WHATWG HTML, "Server-sent events", section 9.2.6 (interpreting an event stream), with
two departures. An event without data is dropped even where the standard would dispatch an empty string: some
engines keep a stream alive that way. And an event that lacks only its final blank line is delivered at the
end of the stream if it is whole, see :meth:`SSEParser.finish`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tierfall.errors import StreamBroken

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""No chunk of a chat completion is near this; a backend that sends it would fill the memory."""
DONE: Final = b"[DONE]"

_FIELD: Final = b"data: "
_END: Final = b"\n\n"
_BOM: Final = b"\xef\xbb\xbf"
_any: Final = msgspec.json.Decoder(msgspec.Raw)


class SSEParser:
    """Feed it what arrives, take the payloads.

    Args:
        max_event_bytes: Bound on an event that is not complete yet.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._line: list[bytes] = []
        """Pieces of the line that has no end yet: joined once, so that many small reads stay linear."""
        self._data: list[bytes] = []
        """Data lines of the event that has no blank line yet."""
        self._pending = 0
        self._after_cr = False
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        r"""The payloads that these bytes complete, lines of one event joined by ``\n``.

        Raises:
            StreamBroken: An unfinished event passes the bound.
        """
        if self._after_cr or b"\r" in data:
            data = self._without_cr(data)
        if data.startswith(_FIELD) and data.endswith(_END) and not (self._line or self._data):
            # Nearly all reads: whole events of one line each, which need no look at every line.
            payloads = data[len(_FIELD) : -len(_END)].split(_END + _FIELD)
            if not any(b"\n" in payload for payload in payloads):
                self._begun = True
                return [payload for payload in payloads if payload]
        if b"\n" in data:
            lines = data.split(b"\n")
            if self._line:
                lines[0] = b"".join((*self._line, lines[0]))
                self._line.clear()
            rest = lines.pop()
            payloads = self._take(lines)
            self._pending = sum(map(len, self._data))
        else:
            rest, payloads = data, []
        if rest:
            self._line.append(rest)
            self._pending += len(rest)
        if self._pending > self._max:
            raise StreamBroken(f"the backend sent an event of more than {self._max} bytes")
        return payloads

    def finish(self) -> bytes | None:
        """The last payload, if the stream ended without the blank line after it.

        The standard drops such an event. Here it is delivered when it is complete JSON or ``[DONE]``: some
        engines forget the last blank line, and a payload cut in the middle is never complete JSON, because
        an object ends with its closing brace.

        Raises:
            StreamBroken: The stream was cut in the middle of an event.
        """
        payloads = self.feed(b"\n\n")
        if not payloads:
            return None
        payload = payloads[0]
        if payload != DONE:
            try:
                _any.decode(payload)
            except (msgspec.DecodeError, RecursionError):
                raise StreamBroken("the backend's stream was cut in the middle of an event") from None
        return payload

    def _take(self, lines: list[bytes]) -> list[bytes]:
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BOM)
        payloads = []
        data = self._data
        for line in lines:
            if not line:
                if data:
                    payload = data[0] if len(data) == 1 else b"\n".join(data)
                    if payload:
                        payloads.append(payload)
                    data.clear()
            elif line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                data.append(b"")
        return payloads

    def _without_cr(self, data: bytes) -> bytes:
        r"""Makes ``\n`` of ``\r\n`` and ``\r``, also where the pair is split between two reads."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
