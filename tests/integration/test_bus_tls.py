"""TLS towards NATS: nothing leaves without it where it is required, and a failure names the check."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final

import pytest

from fakes.certificates import Authority
from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.processes import free_port
from tierfall.bus import Bus, BusOptions
from tierfall.bus import nkey as nkeys
from tierfall.bus import wire as wire_module
from tierfall.config import NatsTls
from tierfall.errors import BusDown, BusUnfit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN: Final = "t0p-s3cret"
NO_TLS: Final = "the server offers no TLS, so nothing was sent to it"


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """The CA that the tests' servers and clients are of."""
    return Authority(tmp_path / "ca")


class Eavesdropper:
    """Greets as a NATS server, with what it is told to say, and keeps all that is sent to it."""

    def __init__(self, **info: Any) -> None:
        self._info = {
            "server_id": "E",
            "version": "2.15.1",
            "proto": 1,
            "headers": True,
            "max_payload": 1 << 20,
        }
        self._info |= info
        self.port = free_port()
        self.greeted = 0
        self.heard = b""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """While it listens."""
        server = await asyncio.start_server(self._greet, "127.0.0.1", self.port)
        async with server:
            yield

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO %b\r\n" % json.dumps(self._info).encode())
        self.greeted += 1
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.heard += data
                if b"PING\r\n" in data:
                    writer.write(b"PONG\r\n")
        writer.close()


def tls_url(server: NatsServer) -> str:
    """By name: the tests' certificates are for ``localhost``."""
    return f"tls://localhost:{server.port}"


async def connected(servers: str, tls: NatsTls | None = None, **options: Any) -> Bus:
    """A bus that gives up soon."""
    options.setdefault("token", TOKEN)
    return await Bus.connect(BusOptions(servers=servers, name="t", tls=tls, connect_timeout_s=1.0, **options))


async def refused(servers: str, tls: NatsTls | None = None, *, token: str = TOKEN, nkey: str = "") -> str:
    """Why one round over the servers ends without a connection."""
    bus = Bus(BusOptions(servers=servers, name="t", tls=tls, token=token, nkey=nkey))
    with pytest.raises(BusDown) as caught:
        await bus._dialer.dial()
    await bus.close()
    assert TOKEN not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("scheme", "tls"), [("tls", None), ("nats", NatsTls()), ("tls", NatsTls(handshake_first=True))]
)
async def test_a_server_without_tls_hears_nothing(scheme: str, tls: NatsTls | None) -> None:
    """Where TLS is required, a server that offers none gets no CONNECT: no token."""
    fake = Eavesdropper(auth_required=True)
    async with fake.serving():
        message = await refused(f"{scheme}://localhost:{fake.port}", tls)
    assert fake.greeted > 0
    assert b"CONNECT" not in fake.heard
    assert TOKEN.encode() not in fake.heard
    assert NO_TLS in message or (tls is not None and tls.handshake_first)


@pytest.mark.parametrize("limit", [None, "1MB", [], 1.5, -1])
async def test_a_server_that_says_no_number_for_its_limit_is_refused(limit: object) -> None:
    """As a try that failed: the next one may meet a better server."""
    fake = Eavesdropper(max_payload=limit)
    async with fake.serving():
        assert "max_payload" in await refused(f"nats://localhost:{fake.port}")


async def test_no_signature_leaves_either(tmp_path: Path) -> None:
    """A nonce is not signed for a server without TLS, which could log in with it elsewhere."""
    seed = tmp_path / "nkey"
    seed.write_text(f"{nkeys.new_seed()}\n")
    fake = Eavesdropper(auth_required=True, nonce="abc")
    async with fake.serving():
        assert NO_TLS in await refused(f"tls://localhost:{fake.port}", token="", nkey=str(seed))
    assert fake.greeted > 0
    assert fake.heard == b""


async def test_a_real_server_without_tls(caplog: pytest.LogCaptureFixture) -> None:
    """nats-server without ``tls`` is refused, with a log line at the first try and not after the last."""
    async with NatsServer() as server:
        with pytest.raises(BusUnfit, match=NO_TLS):
            await connected(tls_url(server))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == 1
    assert f"localhost:{server.port}: {NO_TLS}; trying on" in lines[0]


async def test_a_server_that_lost_its_tls(ca: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """A reconnect is held to the same: the server that came back without TLS is not used, until it has it."""
    conf = ca.server_conf("localhost")
    async with NatsServer(conf) as server:
        bus = await connected(tls_url(server), NatsTls(ca_file=ca.file))
        await server.kill()
        await until(lambda: not bus.connected)
        server.config = ""
        await server.start()
        await until(lambda: NO_TLS in caplog.text)
        assert not bus.connected
        await server.kill()
        server.config = conf
        await server.start()
        await until(lambda: bus.connected)
        assert bus.counters.reconnects == 1
        await bus.close()


async def test_discovered_servers_are_held_to_it(ca: Authority) -> None:
    """A server that a TLS server names is asked for TLS too, under the name that the cluster is known by."""
    fake = Eavesdropper(auth_required=True)
    routes = [free_port(), free_port()]
    links = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
    conf = ca.server_conf("localhost")
    conf += f"\ncluster {{ name: c, host: 127.0.0.1, port: {routes[0]}, routes: [{links}] }}"
    # The second of the cluster tells of itself where the fake listens.
    second = f"cluster {{ name: c, host: 127.0.0.1, port: {routes[1]}, routes: [{links}] }}"
    second += f"\nclient_advertise: 127.0.0.1:{fake.port}"
    async with fake.serving(), NatsServer(conf) as server, NatsServer(second):
        bus = await connected(tls_url(server), NatsTls(ca_file=ca.file))
        await until(lambda: bus._wire is not None and str(fake.port) in str(bus._wire.discovered))
        assert bus._wire is not None
        assert bus._wire.discovered[f"tls://127.0.0.1:{fake.port}"] == "localhost"
        await server.kill()
        await until(lambda: fake.greeted >= 2)
        await server.start()
        await until(lambda: bus.connected)
        await bus.close()
    assert fake.heard == b""


async def test_what_is_said_in_plain_text_is_no_address(ca: Authority) -> None:
    """The greeting before TLS can be anybody's, so the servers that it names are not dialled."""
    async with NatsServer(ca.server_conf("localhost")) as server:
        port = free_port()

        async def tamper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            above, below = await asyncio.open_connection("127.0.0.1", server.port)
            info = json.loads((await above.readline()).removeprefix(b"INFO "))
            writer.write(b"INFO %b\r\n" % json.dumps(info | {"connect_urls": ["evil.example:4222"]}).encode())

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(reader, below), pump(above, writer))

        async with await asyncio.start_server(tamper, "127.0.0.1", port):
            bus = await connected(f"tls://localhost:{port}", NatsTls(ca_file=ca.file))
            await bus.flush()
            assert bus._wire is not None
            assert bus._wire.discovered == {}
            await bus.close()


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_tls_that_the_server_only_offers_is_used(ca: Authority, scheme: str) -> None:
    """With ``allow_non_tls`` the server would take plain text; where TLS is required it is not used."""
    async with NatsServer(f"allow_non_tls: true\n{ca.server_conf('localhost')}") as server:
        bus = await connected(f"{scheme}://localhost:{server.port}", NatsTls(ca_file=ca.file))
        assert bus._wire is not None
        assert bus._wire._writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        await bus.flush()
        await bus.close()


async def test_client_certificates(ca: Authority, tmp_path: Path) -> None:
    """A server with ``verify: true`` takes a certificate of its CA; without one the message names it."""
    certificate, key = ca.issue("worker")
    foreign = Authority(tmp_path / "other").issue("worker")
    async with NatsServer(ca.server_conf("localhost", more="verify: true")) as server:
        bus = await connected(tls_url(server), NatsTls(ca_file=ca.file, cert_file=certificate, key_file=key))
        await bus.flush()
        await bus.close()
        message = await refused(tls_url(server), NatsTls(ca_file=ca.file))
        assert "the server asks for a client certificate: set nats.tls.cert_file" in message
        tls = NatsTls(ca_file=ca.file, cert_file=foreign[0], key_file=foreign[1])
        assert "client certificate" in await refused(tls_url(server), tls)


async def test_handshake_first(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS before the greeting works where both sides are set to it; one alone says what to change."""
    monkeypatch.setattr(wire_module, "HANDSHAKE_STEP_S", 0.5)
    first = ca.server_conf("localhost", more="handshake_first: true")
    async with NatsServer(first, greets=False) as server:
        bus = await connected(tls_url(server), NatsTls(ca_file=ca.file, handshake_first=True))
        await bus.flush()
        await bus.close()
        message = await refused(tls_url(server), NatsTls(ca_file=ca.file))
        assert "nats.tls.handshake_first: true" in message
    async with NatsServer(ca.server_conf("localhost")) as server:
        message = await refused(tls_url(server), NatsTls(ca_file=ca.file, handshake_first=True))
        assert "take out nats.tls.handshake_first" in message


@pytest.mark.parametrize(
    ("names", "expired", "own_ca", "said"),
    [
        (("other.example",), False, True, "it is for another host name"),
        (("localhost",), True, True, "it has expired"),
        (("localhost",), False, False, "its CA is not known here"),
    ],
)
async def test_the_failed_check_is_named(
    ca: Authority, names: tuple[str, ...], expired: bool, own_ca: bool, said: str
) -> None:
    """Wrong name, expired, unknown CA: refused, and the message says which."""
    async with NatsServer(ca.server_conf(*names, expired=expired)) as server:
        message = await refused(tls_url(server), NatsTls(ca_file=ca.file if own_ca else ""))
    assert f"the server's certificate is refused: {said}" in message


async def test_a_renewed_certificate_needs_no_restart(ca: Authority) -> None:
    """Files are read at each connect: the client certificate that is there by then is shown."""
    certificate, key = ca.issue("worker")
    tls = NatsTls(ca_file=ca.file, cert_file=certificate, key_file=key)
    async with NatsServer(ca.server_conf("localhost", more="verify: true")) as server:
        bus = await connected(tls_url(server), tls)
        ca.issue("worker", expired=True)
        await server.restart()
        await until(lambda: bus.connected and bus.counters.reconnects == 1)
        await bus.close()
