"""A line whose chunks go straight to the client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from tierfall.protocol.frames import Frame, Kind
from tierfall_ingress.connection import Client
from tierfall_ingress.line import KEEP_ALIVE, Line

if TYPE_CHECKING:
    from uvicorn.protocols.http.flow_control import FlowControl

    from tierfall.bus import Bus
    from tierfall_ingress.switchboard import Switchboard


class Board:
    """What a line needs of its switchboard."""

    part_bytes = 1000

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def forget(self, line: Line) -> None:
        """Nothing is kept here."""


class Silent:
    """A bus that carries nothing."""

    connected = False


def opened() -> Line:
    """A line that nobody has answered on."""
    return Line(cast("Switchboard", Board()), cast("Bus", Silent()), 1, "a", b"", sent_bytes=0)


async def flowing(line: Line, write: object) -> asyncio.Task[None]:
    """The line's reader, asleep in :meth:`Line.flow`."""
    task = asyncio.create_task(line.flow(write))  # type: ignore[arg-type]  # each test's own
    await asyncio.sleep(0)
    return task


async def test_chunks_pass_while_there_is_room_and_wait_when_there_is_none() -> None:
    """What comes after a write without room is kept for the reader, who wakes; nothing is lost."""
    line, got = opened(), list[bytes]()

    def write(data: bytes) -> bool:
        got.append(data)
        return data != b"B"

    reader = await flowing(line, write)
    line.feed(Frame(Kind.CHUNK, 1, 0, b"A"))
    line.keep_alive()
    line.feed(Frame(Kind.PART, 1, 1, b""))
    line.feed(Frame(Kind.CHUNK, 1, 2, b"B"))
    line.feed(Frame(Kind.CHUNK, 1, 3, b"C"))
    line.keep_alive()
    await reader
    assert (got, line.take()) == ([b"A", KEEP_ALIVE, b"B"], b"C")


@pytest.mark.parametrize("woken", [False, True])
async def test_a_defect_of_the_writer_is_its_readers(woken: bool) -> None:
    """What the writer raises reaches whoever waits, also one that something else has woken by then."""
    line = opened()

    def write(_: bytes) -> bool:
        raise KeyError

    reader = await flowing(line, write)
    if woken:
        line.feed(Frame(Kind.PROGRESS, 1, 0, b"loading"))
    line.feed(Frame(Kind.CHUNK, 1, int(woken), b"A"))
    with pytest.raises(KeyError):
        await reader


async def test_nothing_is_no_chunk_and_the_gone_get_none() -> None:
    """A chunk of no bytes would end the body (RFC 9112, section 7.1); who is gone is not written to."""

    class Transport:
        def __init__(self) -> None:
            self.written = b""

        def write(self, data: bytes) -> None:
            self.written += data

    class Flow:
        write_paused = False

    transport = Transport()
    client = Client(cast("asyncio.Transport", transport), cast("FlowControl", Flow()))
    assert client.write(b"")
    assert client.write(b"data")
    client.gone = True
    assert client.write(b"more")
    assert transport.written == b"4\r\ndata\r\n"
