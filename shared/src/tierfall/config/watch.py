"""Live reload: a changed config file is noticed, checked and handed over; a bad one changes nothing.

The file is polled: inotify does not see the symlink that Kubernetes swaps behind a mounted ConfigMap, nor a
change made on another machine of a shared disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from tierfall.config.load import load_text, read_text
from tierfall.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from tierfall.config.schema import Config

POLL_EVERY_S: Final = 1.0

_Stamp = tuple[int, int, int, int]
_T = TypeVar("_T")

log = logging.getLogger("tierfall.config")


class Watcher:
    """Watches one config file from an asyncio task.

    A change counts once the file looked the same in two polls, so that one caught half-written is seldom
    read, and an editor's moment between delete and create not at all. A content is read once: bad, it is
    reported once and the config in force stays.

    Args:
        path: The file; symlinks are followed.
        on_change: Called on the event loop with a config that differs from the one in force.
        on_refused: Called on the event loop when a content cannot be used, or the file stays away.
        environ: Where ``${NAME}`` of a secret is looked up.
        current: The config in force. Without it the first poll's content is taken for it, so that a change
            made between loading and watching goes unseen.
        for_worker: See :func:`tierfall.config.load.load`.
        poll_every_s: Seconds between two looks.
    """

    def __init__(
        self,
        path: str | Path,
        on_change: Callable[[Config], None],
        on_refused: Callable[[ConfigError], None],
        environ: Mapping[str, str],
        *,
        current: Config | None = None,
        for_worker: bool = False,
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        self._path = Path(path)
        self._on_change = on_change
        self._on_refused = on_refused
        self._environ = environ
        self._current = current
        self._for_worker = for_worker
        self._poll_every_s = poll_every_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._digest: bytes | None = None
        self._is_first = True

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self) -> None:
        """Begins to watch; needs a running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"watch {self._path.name}")

    async def stop(self) -> None:
        """Ends the task; no callback comes after it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def reload_now(self) -> None:
        """Reads the file at once, for SIGHUP. A content that was refused before is refused again, aloud."""
        self._wake.set()

    async def _run(self) -> None:
        taken = seen = _stamp(self._path)
        await self._reload(forced=False)
        while True:
            forced = await self._pause()
            stamp = _stamp(self._path)
            if forced or (stamp == seen and stamp != taken):
                # Stamped before it is read: a change in between shows as one more change, never as none.
                taken = stamp
                await self._reload(forced=forced)
            seen = stamp

    async def _pause(self) -> bool:
        """Waits for the next poll; true when :meth:`reload_now` cut it short."""
        try:
            async with asyncio.timeout(self._poll_every_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _reload(self, *, forced: bool) -> None:
        # In a thread: a large file takes long enough to parse that open streams would stutter.
        try:
            digest, found = await asyncio.to_thread(self._read)
        except Exception:  # the watch must outlive a defect in a check, or no later reload is seen
            log.exception("%s: cannot be judged; the config in force stays", self._path)
            return
        is_news = digest != self._digest
        self._digest = digest
        if isinstance(found, ConfigError):
            if is_news or forced:
                self._tell(self._on_refused, found)
        elif self._current is None and self._is_first:
            self._current = found
        elif found != self._current:
            if self._tell(self._on_change, found):
                self._current = found
        elif forced:
            log.info("%s: nothing has changed", self._path)
        self._is_first = False

    def _read(self) -> tuple[bytes, Config | ConfigError]:
        """The file's content as a digest, and what it says."""
        try:
            text = read_text(self._path)
        except ConfigError as error:
            return _digest(str(error)), error
        try:
            config = load_text(text, self._path, self._environ, for_worker=self._for_worker)
        except ConfigError as error:
            return _digest(text), error
        return _digest(text), config

    def _tell(self, callback: Callable[[_T], None], what: _T) -> bool:
        """Calls back; false when that failed, which must not end the watch."""
        try:
            callback(what)
        except Exception:
            log.exception("%s: the reload failed half-way", self._path)
            return False
        return True


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _stamp(path: Path) -> _Stamp | None:
    """What changes when the file does; ``None`` while it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_dev, found.st_ino
