"""What reads bytes that others wrote, and what must hold whatever they are.

Each target takes one input and raises AssertionError, or whatever escapes, when a promise is broken.
``bench/fuzz.py`` searches for such inputs; the unit tests hold the targets to their seeds.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from fakes.fuzz_http import outcome_of
from tierfall.chat import Assembly, ChunkStream, Continuation
from tierfall.errors import (
    BackendFault,
    ContinuationDiverged,
    InvalidRequest,
    StreamBroken,
    TierfallError,
    UnsupportedByTier,
)
from tierfall.protocol.envelope import Envelope, Resume, pack, unpack, unpack_ending
from tierfall.protocol.failure import pack_failure, unpack_failure
from tierfall.protocol.frames import FrameError, Kind, decode, encode
from tierfall.protocol.presence import Beat, pack_beat, unpack_beat
from tierfall.upstream import Source, SSEParser
from tierfall.upstream.completion import as_chunk
from tierfall.upstream.failure import from_answer, from_event
from tierfall_ingress.ask import parse_ask
from tierfall_ingress.wire import error_body, error_headers
from tierfall_worker_ollama.answer import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT_END: Final = b"\x00"
"""Between payloads of one input: no JSON holds it."""
SOURCE: Final = Source("openai", "http://127.0.0.1/v1")
STAMP: Final = {"id": "chatcmpl-1", "created": 1, "model": "first", "object": "chat.completion.chunk"}
BEGUN: Final = "Hel"
TOLD: Final = ("message", "status", "code", "param", "should_retry")


class Target(NamedTuple):
    """One reader of foreign bytes."""

    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def pieces(data: bytes) -> tuple[list[bytes], bytes]:
    """An input as pieces of the size that its first byte says, and in one piece."""
    size, whole = (data[0] or len(data)) if data else 1, data[1:]
    return [whole[at : at + size] for at in range(0, len(whole), size)], whole


# -- the bus


def frames(data: bytes) -> None:
    """Frames or a FrameError; what was read is what was written."""
    found = bytearray()
    whole = True
    try:
        for frame in decode(data):
            found += encode(*frame)
    except FrameError:
        whole = False
    assert data.startswith(found)
    assert (len(found) == len(data)) is whole


def envelope(data: bytes) -> None:
    """An envelope that can be sent on, or a FrameError."""
    try:
        found = unpack(data)
    except FrameError:
        return
    assert unpack(pack(*found)) == found


def ending(data: bytes) -> None:
    """Always an ending, with counts that a counter takes."""
    found = unpack_ending(data)
    assert found.prompt_tokens >= 0
    assert found.completion_tokens >= 0


def failure(data: bytes) -> None:
    """Always an error of the tree that a client can be told."""
    tellable(unpack_failure(data))


def beat(data: bytes) -> None:
    """A beat that can be sent on, or nothing."""
    found = unpack_beat(data)
    assert found is None or unpack_beat(pack_beat(found)) == found


def tellable(error: TierfallError) -> None:
    """It crosses the bus as it is, and has a status, a body and headers."""
    crossed = unpack_failure(pack_failure(error))
    assert type(crossed) is type(error)
    assert all(getattr(crossed, name) == getattr(error, name) for name in TOLD)
    assert (crossed.retry_after is None) is (error.retry_after is None)
    assert 400 <= error.status <= 599
    told = json.loads(error_body(error))["error"]
    assert told["message"] == error.message
    assert all(told[name] is None or isinstance(told[name], str) for name in ("param", "code"))
    for name, value in error_headers(error):
        assert not set(name + value) & set(b"\r\n\x00")


# -- clients


def ask(data: bytes) -> None:
    """A request that says what the body says, or an InvalidRequest."""
    try:
        found = parse_ask(data)
    except InvalidRequest as error:
        tellable(error)
        return
    body = json.loads(data)
    assert (found.model, found.streaming) == (body["model"], bool(body.get("stream")))
    assert found.choices == (1 if body.get("n") is None else body["n"])


# -- backends


def sse(data: bytes) -> None:
    """The same payloads however the stream is cut, and those that the standard's rules give."""
    cut, stream = pieces(data)
    parser = SSEParser()
    found = [payload for piece in cut for payload in parser.feed(piece)]
    assert found == payloads_of(stream)
    try:
        last = parser.finish()
    except StreamBroken:
        return
    if last is not None:
        assert [*found, last] == payloads_of(stream + b"\n\n")


def payloads_of(stream: bytes) -> list[bytes]:
    """The standard's rules, over a whole stream at once."""
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removeprefix(b"\xef\xbb\xbf")
    found, data = [], list[bytes]()
    for line in text.split(b"\n")[:-1]:
        if not line:
            found.append(b"\n".join(data))
            data = []
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
    return [payload for payload in found if payload]


def http(data: bytes) -> None:
    """The same answer, or the same break, however it is cut."""
    cut, whole = pieces(data)
    with asyncio.Runner(loop_factory=_loop) as runner:
        assert runner.run(outcome_of(cut)) == runner.run(outcome_of([whole]))


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop()


def chunks(data: bytes) -> None:
    """Chunks on one line each with our stamp, or an error of the tree."""
    flags, *payloads = data[:1], *data[1:].split(EVENT_END)
    begun = flags > b"\x80"
    stream = ChunkStream("chatcmpl-1", 1, "first", 1 + (flags[:1] == b"\x01"), begun=begun)
    continuation = Continuation(BEGUN if begun else "")
    try:
        for payload in payloads:
            chunk = stream.feed(payload)
            if chunk:
                is_chunk(chunk)
                continuation.feed(chunk)
    except (BackendFault, ContinuationDiverged) as error:
        tellable(error)
        return
    if stream.usage is not None:
        json.loads(stream.usage_chunk())


def assembly(data: bytes) -> None:
    """A whole answer with our stamp, or an error of the tree; it judges as a stream does."""
    choices = 1 + (data[:1] == b"\x01")
    whole = Assembly("chatcmpl-1", 1, "first", choices)
    stream = ChunkStream("chatcmpl-1", 1, "first", choices)
    for payload in data[1:].split(EVENT_END):
        refused = _refused(stream, payload)
        error = _refused(whole, payload)
        if error is not None:
            tellable(error)
            return
        assert refused is None
    assert (whole.complete, whole.finish_reasons) == (stream.complete, stream.finish_reasons)
    if whole.complete:
        is_completion(whole.completion())


def _refused(answer: Assembly | ChunkStream, payload: bytes) -> BackendFault | None:
    try:
        answer.feed(payload)
    except BackendFault as error:
        return error
    return None


def is_chunk(chunk: bytes) -> None:
    """One line of JSON with our stamp; a delta in each choice."""
    assert b"\n" not in chunk
    assert b"\r" not in chunk
    told = json.loads(chunk)
    assert STAMP.items() <= told.items()
    for choice in told["choices"]:
        assert isinstance(choice["delta"], dict)
        assert isinstance(choice["index"], int)
        assert choice["finish_reason"] != ""


def is_completion(body: bytes) -> None:
    """What a client that does not stream can read."""
    told = json.loads(body)
    assert told["object"] == "chat.completion"
    for choice in told["choices"]:
        assert {"content", "refusal", "role"} <= choice["message"].keys()
        assert "logprobs" in choice


def complaint(data: bytes) -> None:
    """An error answer's status, ``Retry-After`` and body: always an error of the tree that can be told."""
    head, _, body = data[2:].partition(b"\n")
    status = 300 + int.from_bytes(data[:2]) % 300
    tellable(from_answer(SOURCE, status, {"retry-after": head.decode("latin-1")}, body))
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    tellable(from_event(SOURCE, decoded))


def completion(data: bytes) -> None:
    """A whole answer of an engine that ignores ``stream``: one chunk of it, or a broken stream."""
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if isinstance(decoded, dict) and isinstance(decoded.get("choices"), list):
        try:
            chunk = as_chunk(decoded)
        except StreamBroken as error:
            tellable(error)
            return
        chunks(b"\x00" + chunk)


def ollama(data: bytes) -> None:
    """Ollama's lines: chunks, or an error of the tree."""
    flags, *lines = data[:1], *data[1:].split(EVENT_END)
    answer = Answer(logprobs=flags == b"\x01")
    stream = ChunkStream("chatcmpl-1", 1, "first")
    try:
        for line in lines:
            for payload in answer.feed(line):
                chunk = stream.feed(payload)
                if chunk:
                    is_chunk(chunk)
    except (StreamBroken, UnsupportedByTier) as error:
        tellable(error)


# -- seeds


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


_ENVELOPE: Final = Envelope(
    stream=7,
    request_id="r",
    attempt=1,
    model="first",
    backend_model="m",
    answer_id="chatcmpl-1",
    created=1,
    sent_at=2.5,
    signs_every_s=1.0,
    window=10,
    body_size=2,
    resume=Resume(content="Hel", outputs=1),
)
_BEAT: Final = Beat(worker="w", tier="a", kind="vllm", slots=4, in_flight=1, backend="up", models=("m",))
_CALL: Final = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_DELTAS: Final[tuple[dict[str, Any], ...]] = (
    {"role": "assistant", "content": ""},
    {"content": "Hello"},
    {"reasoning_content": "hm"},
    {"tool_calls": [_CALL]},
    {"audio": {"id": "a", "data": "AA=="}},
    {"content": [{"type": "text", "text": "Hello"}]},
)
_CHUNKS: Final = [
    *(_json({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in _DELTAS),
    _json({"choices": [{"index": 0, "delta": {}, "logprobs": {"content": []}, "finish_reason": "stop"}]}),
    _json({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
]
_LINES: Final = [
    _json({"message": {"role": "assistant", "content": "Hel", "thinking": "hm"}, "done": False}),
    _json({"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}}),
    _json({"message": {}, "done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 2}),
]
_STREAM: Final = b"".join(b"data: " + each + b"\n\n" for each in _CHUNKS) + b"data: [DONE]\n\n"
_COMPLETION: Final = {
    "choices": [{"index": 0, "message": {"content": "Hi", "tool_calls": [_CALL]}, "finish_reason": "stop"}]
}
_COMPLAINTS: Final[tuple[Any, ...]] = (
    {"error": {"message": "no", "type": "rate_limit_error", "param": "n", "code": "rate_limit_exceeded"}},
    [{"error": {"status": "RESOURCE_EXHAUSTED", "code": 429, "details": [{"retryDelay": "35s"}]}}],
    {"error": {"details": [{"reason": "r", "violations": [{"quotaId": "PerDay"}]}]}},
    {"detail": [{"type": "missing", "loc": ["body", "messages", 0], "msg": "Field required"}]},
    {"message": {"detail": [{"loc": ["body", "n"], "msg": "no"}]}, "code": "3051"},
)

TARGETS: Final = {
    "frames": Target(
        frames, (encode(Kind.ACCEPTED, 1, 0, b"w"), encode(Kind.CHUNK, 1, 1, b"x") + encode(Kind.END, 1, 2))
    ),
    "sse": Target(
        sse,
        (
            b"\x01" + _STREAM,
            b"\x00\xef\xbb\xbf: c\nevent: e\ndata:{}\r\n\r\ndata\r\rid: 1\n\ndata: {",
            b"\x03data: a\r\ndata: b\r\n\r\n",
        ),
    ),
    "envelope": Target(envelope, (pack(_ENVELOPE, b"{}"),)),
    "ending": Target(
        ending, (_json({"prompt_tokens": 1, "completion_tokens": 2, "finish_reasons": ["stop"]}), _json({}))
    ),
    "failure": Target(
        failure,
        (
            pack_failure(BackendFault("no", param="n", code="c", retry_after=1.5, should_retry=False)),
            _json({"slug": "rate_limited", "message": "m", "status": 429}),
        ),
    ),
    "beat": Target(beat, (pack_beat(_BEAT),)),
    "ask": Target(
        ask,
        (
            _json({"model": "first", "messages": [{"role": "user", "content": "Hi"}], "n": 2}),
            _json(
                {"model": "m", "messages": [{}], "stream": True, "stream_options": {"include_usage": True}}
            ),
        ),
    ),
    "http": Target(
        http,
        (
            b"\x01HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"\x05HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            b"\x00HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 429 No\r\nRetry-After: 1\r\n\r\nbody until the end",
            b"\x07HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
            b"\x00HTTP/1.1 101 Switch\r\nUpgrade: x\r\n\r\n",
        ),
    ),
    "chunks": Target(chunks, tuple(flags + EVENT_END.join(_CHUNKS) for flags in (b"\x00", b"\x01", b"\xff"))),
    "assembly": Target(assembly, tuple(flags + EVENT_END.join(_CHUNKS) for flags in (b"\x00", b"\x01"))),
    "complaint": Target(
        complaint,
        (
            *(b"\x00\x81Wed, 21 Oct 2015 07:28:00 GMT\n" + _json(each) for each in _COMPLAINTS),
            b"\x00\xc8120\n<html>",
        ),
    ),
    "completion": Target(completion, (_json(_COMPLETION),)),
    "ollama": Target(ollama, (b"\x00" + EVENT_END.join(_LINES), b"\x01" + _json({"error": "no"}))),
}
TOKENS: Final = (
    *('"role"', '"content"', '"delta"', '"choices"', '"index"', '"finish_reason"', '"tool_calls"', '"usage"'),
    *('"function"', '"arguments"', '"error"', '"message"', '"code"', '"detail"', '"loc"', '"retryDelay"'),
    *("data:", "data: ", "[DONE]", "HTTP/1.1 ", "Content-Length: ", "Transfer-Encoding: chunked", "event:"),
    *('"slug"', '"status"', '"stream"', "null", "true", "1e999", "NaN", "-1", "[[", "{}", "9999999999999999"),
)
"""What a mutation may put in, so that it need not be found letter by letter."""
