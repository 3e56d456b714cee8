"""One connection to one server: nats-py's client, cut down to what can be relied on.

nats-py 2.16 is used for what it does well: connecting, TLS, authentication, parsing. Its publish and flush
path, its subscriptions with a queue and a task each, its reconnect and its close are not used, because each
has a way to lose messages or to stop for ever (a cancelled flush ends the read loop, an error that closing
meets leaves it unfinished, left subscriptions come back). So a :class:`Wire` lives as long as its socket:
whatever goes wrong, it says so once, and the bus makes a new one.

This overrides private methods, so nats-py is pinned to 2.16, and the contract tests hold it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Final

from tierfall import tls
from tierfall.address import is_address
from tierfall.bus.client import AWAITING_MSG_PAYLOAD, Client, NatsError, Parser, UnexpectedEOF
from tierfall.bus.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from tierfall.bus.message import Callback
    from tierfall.tls import ClientTls

NO_RESPONDERS: Final = b"NATS/1.0 503"
PONG: Final = b"PONG\r\n"
STALE: Final = "stale connection"
PERMISSIONS: Final = "permissions violation"
SLOW_CONSUMER: Final = "slow consumer"

DEFAULT_PORT: Final = 4222
HANDSHAKE_STEP_S: Final = 2
PING_EVERY_S: Final = 5
PINGS_UNANSWERED: Final = 2
SHUT_TIMEOUT_S: Final = 1.0
BACKLOG_BYTES: Final = 16 * 1024
"""Mean size of the last reads that shows a backlog: nats-py reads up to 32 KiB at once, if it is there."""
MEAN_SHIFT: Final = 3
"""The mean is over some eight reads."""


class TlsRefused(NatsError):
    """TLS is required, and this server does not do it, or not with what we have."""


class _Parser(Parser):
    """nats-py's parser, which also knows how much there was to read lately."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._mean_bytes = 0

    def parse(self, data: bytes = b"") -> Coroutine[Any, Any, None]:
        """As nats-py's."""
        if data:
            self._mean_bytes += (len(data) - self._mean_bytes) >> MEAN_SHIFT
        return super().parse(data)

    @property
    def is_behind(self) -> bool:
        """Whether the bytes so far end in a backlog, or in the middle of a message."""
        return self.state == AWAITING_MSG_PAYLOAD or bool(self.buf) or self._mean_bytes >= BACKLOG_BYTES


class Wire(Client):
    """A connection that dispatches straight from its read loop and ends only once.

    Args:
        routes: The bus's callbacks by subscription id; looked up for each message.
        on_error: Told of an exception in a callback.
        on_refusal: Told the text of an error that the server sent (lower case, as nats-py gives it).
        on_lost: Told, once, that the connection is no more, and why.
    """

    def __init__(
        self,
        *,
        routes: dict[int, Callback],
        on_error: Callable[[BaseException], None],
        on_refusal: Callable[[str], None],
        on_lost: Callable[[Wire, str], None],
    ) -> None:
        super().__init__()
        self._ps: _Parser = _Parser(self)
        self._routes = routes
        self._on_error = on_error
        self._on_refusal = on_refusal
        self._on_lost = on_lost
        self._writer: Any = None
        """The stream itself: nats-py's own transport has no way to see how full it is."""
        self.gone = False
        self.server = ""
        """Host and port, without credentials, once it is open."""
        self.refusal = ""
        """The last error from the server that was no matter of permissions: if it closes, this is why."""
        self.cut_short = False
        """Whether the server ended it without an error, amid messages; so it ends slow consumers."""
        self.failure = ""
        """The last thing that went wrong while connecting."""
        self._encryption: ClientTls | None = None
        self._certificate_names: dict[str, str] = {}

    async def open(
        self,
        servers: Mapping[str, str],
        *,
        encryption: ClientTls | None = None,
        public_nkey: str = "",
        **credentials: Any,
    ) -> None:
        """Connects to the first server of a random order that lets us in, trying each at most twice.

        Args:
            servers: Their URLs, each with the name that its certificate must have, empty for the URL's own.
            encryption: With it a server without TLS is refused before it gets a CONNECT.
            public_nkey: Whose signature ``signature_cb`` makes, where no JWT says it.
            credentials: For nats-py's ``connect``.

        Raises:
            OSError, nats.errors.Error, TimeoutError: None did.
        """
        # What nats-py would set itself with the nkeys package, of which there are no wheels.
        self._public_nkey = public_nkey or None
        self._certificate_names = {url: name for url, name in servers.items() if name}
        self._encryption = encryption
        try:
            await self.connect(
                list(servers),
                tls=encryption.context if encryption else None,
                tls_handshake_first=encryption is not None and encryption.handshake_first,
                error_cb=self._note_failure,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=HANDSHAKE_STEP_S,
                ping_interval=PING_EVERY_S,
                max_outstanding_pings=PINGS_UNANSWERED,
                **credentials,
            )
            if not self.is_connected:
                raise NatsError("the server closed the connection, or did not answer, after CONNECT")  # noqa: TRY301 - as nats-py's own
        except BaseException:
            self.gone = True
            await self.shut()
            raise
        url = self.connected_url
        self.server = f"{url.hostname}:{url.port}" if url is not None else ""
        self._writer = self._stream_writer()
        if self._is_tls():
            # nats-py leaves it out, and asyncio warns of each connection that the server closes.
            self._writer.transport.get_protocol()._over_ssl = True  # noqa: SLF001 - what StreamWriter.start_tls() does
        # Whatever ends one of these two tasks, the connection is of no use without it.
        for task in (self._reading_task, self._ping_interval_task):
            if task is not None:
                task.add_done_callback(lambda _: self.lose("the connection's task ended"))

    def is_same_process(self, other: Wire) -> bool | None:
        """Whether both lead to one running server: not if it was restarted; ``None`` for two servers."""
        mine, theirs = self._server_info, other._server_info
        if mine.get("server_id") == theirs.get("server_id"):
            return True
        # One that was given no name has its id for it. Several servers may share an address.
        key = "server_name" if mine.get("server_name") != mine.get("server_id") else ""
        same = mine.get(key) == theirs.get(key) if key else self.server == other.server
        return False if same else None

    @property
    def discovered(self) -> dict[str, str]:
        """The cluster's other servers, as far as the server named them; in the form of :meth:`open`'s."""
        found: dict[str, str] = {}
        current = self._current_server
        if current is None:
            return found
        for url in self.discovered_servers:
            try:
                host, port = url.hostname, url.port or DEFAULT_PORT
            except ValueError:
                continue  # a port that is none
            if not host:
                continue
            # An address stands in few certificates: those of a cluster have the name we know it by.
            named = current.tls_name or current.uri.hostname or ""
            in_url = f"[{host}]" if ":" in host else host  # an IPv6 address
            found[f"{url.scheme}://{in_url}:{port}"] = named if is_address(host) else ""
        return found

    def write(self, items: list[bytes], barriers: list[asyncio.Future[bool]]) -> int:
        """Hands over whole protocol lines; the n-th ``PING`` among them is answered to the n-th barrier.

        Returns:
            How many bytes the kernel has still to take.
        """
        self._pongs += barriers
        try:
            self._writer.write(b"".join(items))
            backlog_bytes: int = self._writer.transport.get_write_buffer_size()
        except (OSError, RuntimeError) as error:
            # uvloop says so when the socket is closed already and the read loop has not seen it yet.
            self.lose(str(error))
            return 0
        return backlog_bytes

    async def drain(self) -> None:
        """Returns when the kernel took most of what was written.

        Raises:
            OSError, RuntimeError: The connection broke meanwhile.
        """
        await self._writer.drain()

    def lose(self, reason: str) -> None:
        """The connection is of no use any more; tells the bus, the first time."""
        if self.gone:
            return
        self.gone = True
        for barrier in self._pongs:
            if not barrier.done():
                barrier.set_result(False)
        self._on_lost(self, self.refusal or reason)

    async def shut(self) -> None:
        """Ends tasks and socket at once. What was written and not yet sent is lost."""
        self.gone = True
        self._status = Client.CLOSED
        writer = self._stream_writer()
        if writer is not None:
            writer.transport.abort()
        tasks = [
            t for t in (self._reading_task, self._ping_interval_task, self._flusher_task) if t is not None
        ]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=SHUT_TIMEOUT_S)
        # In an unfinished TLS handshake the stream's own protocol is out of use, and would wait for ever.
        if writer is not None and isinstance(writer.transport.get_protocol(), asyncio.StreamReaderProtocol):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(SHUT_TIMEOUT_S):
                    await writer.wait_closed()

    def _stream_writer(self) -> Any:
        transport: Any = self._transport
        return transport._io_writer if transport is not None else None  # noqa: SLF001 - see the module

    async def _note_failure(self, error: Exception) -> None:
        self.failure = self._explained(error)

    def _explained(self, error: Exception) -> str:
        if isinstance(error, ssl.SSLError):
            return tls.explain(error)
        text = str(error) or type(error).__name__
        if isinstance(error, TlsRefused):
            return text
        if self._server_info.get("tls_verify") and isinstance(error, ConnectionError):
            return f"{text}: {tls.CERTIFICATE_REFUSED}"  # the server's reason is lost where it closes at once
        if self._current_server is None or self._server_info:
            return text
        if self._encryption is not None and self._encryption.handshake_first:
            return f"{text}: {tls.NOT_TLS_FIRST}"
        return f"{text}: no greeting (a server that begins with TLS needs nats.tls.handshake_first: true)"

    def _is_tls(self) -> bool:
        writer = self._stream_writer()
        found = writer.get_extra_info("ssl_object") if writer is not None else None
        # uvloop has one from the first byte of the handshake on; a version only at its end.
        return found is not None and found.version() is not None

    def _setup_server_pool(self, connect_url: Any) -> None:
        super()._setup_server_pool(connect_url)
        for url, server in zip(connect_url, self._server_pool, strict=True):
            server.tls_name = self._certificate_names.get(url)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001,FBT002 - nats-py's signature
        encryption = self._encryption
        if initial_connection and encryption is not None:
            if not encryption.handshake_first:
                if not (info.get("tls_required") or info.get("tls_available")):
                    raise TlsRefused("the server offers no TLS, so nothing was sent to it")
                # nats-py begins TLS for this alone; a server that offers both takes it too.
                info["tls_required"] = True
                # This came in plain text. The server says it once more after CONNECT.
                info.pop("connect_urls", None)
            if info.get("tls_verify") and not encryption.has_certificate:
                raise TlsRefused(tls.WANTS_CERTIFICATE)
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        # The last moment before the token, or a signature, leaves.
        if self._encryption is not None and not self._is_tls():
            if self._server_info.get("tls_verify"):
                raise TlsRefused(tls.CERTIFICATE_REFUSED)  # closed already, as soon as the handshake was over
            raise TlsRefused("the connection is not encrypted, so nothing was sent on it")
        return super()._connect_command()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        callback = self._routes.get(sid)
        if callback is None:
            return
        try:
            if headers is None:
                callback(Message(subject.decode(), reply.decode(), data))
            else:
                nobody = headers.startswith(NO_RESPONDERS)
                callback(Message(subject.decode(), reply.decode(), data, nobody, headers))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a callback must not end the read loop
            self._on_error(error)

    async def _process_ping(self) -> None:
        self.write([PONG], [])

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            barrier = self._pongs.pop(0)
            if not barrier.done():
                barrier.set_result(True)

    async def _process_err(self, err_msg: str) -> None:
        # The server closes by itself where the error is fatal; where it does not, there is no need to.
        text = err_msg.strip("'")
        if PERMISSIONS not in text:
            self.refusal = text
        self._on_refusal(text)

    async def _process_op_err(self, e: Exception) -> None:
        ended = isinstance(e, OSError | UnexpectedEOF) and not self.refusal
        self.cut_short = ended and not self.gone and self._ps.is_behind
        self.lose(str(e) or type(e).__name__)
