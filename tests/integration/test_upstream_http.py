"""The HTTP client towards backends, against a server that writes what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
import subprocess
from typing import TYPE_CHECKING, Self

import pytest

from fakes.polling import until
from tierfall.upstream import connection
from tierfall.upstream.connection import ConnectFailed, ConnectionBroken
from tierfall.upstream.http import HttpPool, Url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Server:
    """Answers the n-th request with the n-th script; a script is bytes, or None for closing unanswered."""

    def __init__(self, *scripts: Sequence[bytes | None], tls: ssl.SSLContext | None = None) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self.gone = 0
        self._tls = tls
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listens."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops."""
        assert self._server is not None
        self._server.close()
        await until(lambda: self.gone == self.connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(x[15:]) for x in head.split(b"\r\n") if x.startswith(b"content-length:")), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                script = self.scripts.pop(0) if self.scripts else [HELLO]
                for piece in script:
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self.gone += 1

    @property
    def url(self) -> Url:
        """Some path on it."""
        return Url(f"http{'s' if self._tls else ''}://localhost:{self.port}/v1/x?y=1")


@pytest.fixture
async def pool() -> AsyncIterator[HttpPool]:
    """Keeps connections."""
    made = HttpPool({"user-agent": "t"}, connect_timeout_s=2, keepalive_s=30)
    yield made
    await made.close()


async def body_of(pool: HttpPool, url: Url, **options: bytes) -> bytes:
    """One whole answer."""
    response = await pool.request("POST" if options else "GET", url, **options)  # type: ignore[arg-type]
    parts = []
    while data := await response.read():
        parts.append(data)
    return b"".join(parts)


async def test_a_request_as_it_is_sent(pool: HttpPool) -> None:
    """Line, host, headers, length and body, and nothing that was not asked for."""
    async with Server() as server:
        assert await body_of(pool, server.url, body=b"{}") == b"hello"
        await pool.close()
    assert server.requests == [
        b"POST /v1/x?y=1 HTTP/1.1\r\nhost: localhost:%d\r\nuser-agent: t\r\ncontent-length: 2\r\n\r\n{}"
        % server.port
    ]


@pytest.mark.parametrize(
    "answer",
    [
        [HELLO],
        [bytes([byte]) for byte in HELLO],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", HELLO],
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HELLO],
        [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", None],
        [b"HTTP/1.0 200 OK\r\n\r\nhello", None],
    ],
)
async def test_framings(pool: HttpPool, answer: list[bytes | None]) -> None:
    """Every way to frame a body gives the same bytes."""
    async with Server(answer) as server:
        assert await body_of(pool, server.url) == b"hello"
        await pool.close()


async def test_trailers_are_no_headers(pool: HttpPool) -> None:
    """What follows a body cannot change what its headers said (RFC 9110, section 6.5.1)."""
    head = b"HTTP/1.1 200 OK\r\nRetry-After: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with Server([head + b"2\r\nhe\r\n0\r\nRetry-After: 99\r\nX: y\r\n\r\n"]) as server:
        response = await pool.request("GET", server.url)
        assert await response.read() == b"he"
        assert response.whole
        assert response.headers == {"retry-after": "1", "transfer-encoding": "chunked"}
        await pool.close()


async def test_a_connection_serves_one_request_after_the_other(pool: HttpPool) -> None:
    """What ended in good order is used again."""
    async with Server() as server:
        for _ in range(5):
            assert await body_of(pool, server.url) == b"hello"
        await pool.close()
        assert (server.connections, len(server.requests)) == (1, 5)


@pytest.mark.parametrize("header", [b"Connection: close\r\n", b""])
async def test_a_closed_connection_is_replaced(pool: HttpPool, header: bytes) -> None:
    """A server may close after an answer, announced or not: the next request does not suffer from it."""
    answer = HELLO.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n", 1)
    async with Server(*[[answer, None]] * 10) as server:
        for _ in range(10):
            assert await body_of(pool, server.url) == b"hello"
        await pool.close()


async def test_a_connection_passes_to_the_next_request_at_once(
    pool: HttpPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the task that asked first has woken to see its answer."""
    answered = asyncio.Event()
    original = connection.Connection.data_received

    def data_received(self: connection.Connection, data: bytes) -> None:
        answered.set()  # the second task wakes before the first one
        original(self, data)

    monkeypatch.setattr(connection.Connection, "data_received", data_received)

    async def second() -> bytes:
        await answered.wait()
        return await body_of(pool, server.url)

    async with Server() as server:
        answers = await asyncio.gather(body_of(pool, server.url), second())
        assert list(answers) == [b"hello", b"hello"]
        await pool.close()
        assert server.connections == 1


async def test_a_kept_connection_that_dies_unheard_is_replaced(pool: HttpPool) -> None:
    """An idempotent request that a kept connection swallowed goes out again on a new one."""
    async with Server([HELLO], [None], [HELLO]) as server:
        assert await body_of(pool, server.url) == b"hello"
        assert await body_of(pool, server.url) == b"hello"
        await pool.close()
        assert len(server.requests) == 3


async def test_a_connection_that_dies_unheard_is_replaced_once(pool: HttpPool) -> None:
    """When the new one swallows it too, it fails."""
    async with Server([HELLO], [None], [None]) as server:
        assert await body_of(pool, server.url) == b"hello"
        with pytest.raises(ConnectionBroken):
            await body_of(pool, server.url)
        await pool.close()
        assert len(server.requests) == 3


async def test_a_swallowed_post_is_not_repeated(pool: HttpPool) -> None:
    """A generation may have begun: whether it is asked for again is the ladder's to say, and to count."""
    async with Server([HELLO], [None]) as server:
        assert await body_of(pool, server.url, body=b"{}") == b"hello"
        with pytest.raises(ConnectionBroken):
            await body_of(pool, server.url, body=b"{}")
        assert len(server.requests) == 2
        assert await body_of(pool, server.url, body=b"{}") == b"hello"
        await pool.close()


async def test_a_connection_that_ended_unnoticed_is_not_written_to(pool: HttpPool) -> None:
    """Its end has arrived, though the event loop has not told of it yet: a POST takes a new one."""
    async with Server([HELLO, None]) as server:
        assert await body_of(pool, server.url, body=b"{}") == b"hello"
        (kept,) = pool._open
        assert kept._transport is not None
        fd = kept._transport.get_extra_info("socket").fileno()
        kept._transport.pause_reading()  # so that the loop does not look
        await until(lambda: select.select([fd], [], [], 0)[0])
        assert await body_of(pool, server.url, body=b"{}") == b"hello"
        assert server.connections == 2
        await pool.close()


async def test_a_server_that_closes_behind_its_answers_is_not_trusted_to_keep(
    pool: HttpPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one such end each request has a connection of its own, until the server is trusted again."""
    monkeypatch.setattr(connection, "HASTY_CLOSE_S", 30.0)  # however slow the machine is
    async with Server([HELLO, None]) as server:
        assert await body_of(pool, server.url, body=b"{}") == b"hello"
        await until(lambda: not pool._open)
        for _ in range(3):
            assert await body_of(pool, server.url, body=b"{}") == b"hello"
            await until(lambda: not pool._open)
        assert server.connections == 4
        monkeypatch.setattr(pool, "_distrusted", dict.fromkeys(pool._distrusted, 0.0))
        for _ in range(3):
            assert await body_of(pool, server.url, body=b"{}") == b"hello"
        assert server.connections == 5
        await pool.close()


async def test_a_large_answer_that_is_not_read_does_not_hold_up_the_next(
    pool: HttpPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole answer above the high-water mark that is given up leaves a connection that can be used."""
    monkeypatch.setattr(connection, "HIGH_WATER_BYTES", 1000)
    body = b"z" * 5000
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with Server([large]) as server:
        response = await pool.request("POST", server.url, body=b"{}")
        await until(lambda: response.whole)
        response.close()
        assert await body_of(pool, server.url, body=b"{}") == b"hello"
        assert server.connections == 1
        await pool.close()


async def test_a_request_that_was_heard_is_never_repeated(pool: HttpPool) -> None:
    """Once a byte of the answer came, a break is a break."""
    async with Server([HELLO], [b"HTTP/1.1 2", None]) as server:
        await body_of(pool, server.url)
        with pytest.raises(ConnectionBroken):
            await body_of(pool, server.url)
        await pool.close()
        assert len(server.requests) == 2


async def test_what_came_before_a_break_is_read(pool: HttpPool) -> None:
    """Bytes that arrived are given out before the error is."""
    async with Server([HELLO[:-2], None]) as server:
        response = await pool.request("GET", server.url)
        await asyncio.sleep(0)
        assert await response.read() == b"hel"
        with pytest.raises(ConnectionBroken):
            await response.read()
        assert not response.whole
        await pool.close()


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n\r\n", b"\x16\x03\x01\x00\x00", b"HTTP/1.1 abc\r\n\r\n"])
async def test_garbage_is_a_broken_connection(pool: HttpPool, garbage: bytes) -> None:
    """What is not HTTP ends the exchange, and the connection."""
    async with Server([garbage]) as server:
        with pytest.raises(ConnectionBroken, match="not HTTP"):
            await body_of(pool, server.url)
        await until(lambda: server.gone == 1)


async def test_an_endless_head_is_cut(pool: HttpPool) -> None:
    """A server cannot fill the memory with headers."""
    async with Server([b"HTTP/1.1 200 OK\r\n"] + [b"x: " + b"y" * 1000 + b"\r\n"] * 200) as server:
        with pytest.raises(ConnectionBroken, match="head"):
            await body_of(pool, server.url)
        await until(lambda: server.gone == 1)


async def test_closing_an_unfinished_answer_closes_its_connection(pool: HttpPool) -> None:
    """Whoever gives up an answer makes the server notice."""
    async with Server([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx"]) as server:
        response = await pool.request("GET", server.url)
        response.close()
        await until(lambda: server.gone == 1)


async def test_cancelling_a_wait_for_the_head_closes_the_connection(pool: HttpPool) -> None:
    """A request that nobody waits for any longer is not left running."""
    async with Server([]) as server:
        task = asyncio.create_task(pool.request("GET", server.url))
        await until(lambda: server.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.gone == 1)


async def test_idle_connections_expire() -> None:
    """A kept connection is closed after its time."""
    short = HttpPool({}, connect_timeout_s=2, keepalive_s=0.05)
    async with Server() as server:
        await body_of(short, server.url)
        await until(lambda: server.gone == 1)


async def test_bytes_that_nobody_asked_for_close_an_idle_connection(pool: HttpPool) -> None:
    """A second answer to one request is never taken for the next one's."""
    async with Server([HELLO + HELLO]) as server:
        assert await body_of(pool, server.url) == b"hello"
        assert await body_of(pool, server.url) == b"hello"
        assert server.connections == 2
        await pool.close()


async def test_an_unread_answer_stops_the_server(pool: HttpPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not read is not piled up without bound, and goes on when it is."""
    monkeypatch.setattr(connection, "HIGH_WATER_BYTES", 64 * 1024)
    size = 64 * 1024 * 1024
    piece = b"z" * (1024 * 1024)
    async with Server([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size] + [piece] * 64) as server:
        response = await pool.request("GET", server.url)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert response._unread < size / 4
        total = 0
        while data := await response.read():
            total += len(data)
        assert total == size
        await pool.close()


async def test_nobody_there() -> None:
    """Refused and unknown hosts are told apart from broken connections."""
    pool = HttpPool({}, connect_timeout_s=2, keepalive_s=1)
    for url in ("http://127.0.0.1:1/", "http://nowhere.invalid/"):
        with pytest.raises(ConnectFailed):
            await pool.request("GET", Url(url))


async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that the system trusts is taken, another one is refused."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "k.pem", "-out", "c.pem"]
    process = await asyncio.create_subprocess_exec(
        *command.split(), *files, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    assert await process.wait() == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    async with Server(tls=context) as server:
        stranger = HttpPool({}, connect_timeout_s=2, keepalive_s=1)
        with pytest.raises(ConnectFailed, match="TLS"):
            await stranger.request("GET", server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
        pool = HttpPool({}, connect_timeout_s=2, keepalive_s=1)
        assert await body_of(pool, server.url) == b"hello"
        await pool.close()


@pytest.mark.parametrize(
    ("text", "authority", "target"),
    [
        ("http://h", b"h", b"/"),
        ("http://h:81/a?b=c", b"h:81", b"/a?b=c"),
        ("https://user:secret@h/a", b"h", b"/a"),
        ("http://[::1]:80/", b"[::1]:80", b"/"),
    ],
)
def test_urls(text: str, authority: bytes, target: bytes) -> None:
    """An address is split into what the request needs; credentials in it are not sent as a host."""
    url = Url(text)
    assert (url.authority, url.target) == (authority, target)


@pytest.mark.parametrize("text", ["", "h", "ftp://h", "http://", "http://:80"])
def test_no_urls(text: str) -> None:
    """What is no HTTP address is refused."""
    with pytest.raises(ValueError, match="not an http"):
        Url(text)
