"""Live reload: what a watcher notices, and what it leaves alone."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import pytest

from tierfall.config import Watcher, load, watch
from tierfall.config.load import read_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tierfall.config import Config
    from tierfall.errors import ConfigError

POLL_EVERY_S = 0.01
GIVE_UP_AFTER_S = 20


def text(port: int) -> str:
    """A good config, told apart by its port."""
    return f"""
server: {{port: {port}, api_keys: [hunter2]}}
tiers: {{gpu: {{worker: vllm, base_url: "http://h/v1"}}}}
models: {{big: {{tier: gpu, backend_model: b}}}}
"""


def put(path: Path, content: str) -> None:
    """Writes the file in place, as an editor or ``cp`` does."""
    path.write_text(content)


def take_away(path: Path) -> None:
    """Deletes the file."""
    path.unlink()


class Seen:
    """What a watcher called back with, and a watcher that notes it here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ports: list[int] = []
        self.refused: list[str] = []

    def watcher(
        self, current: Config | None = None, on_change: Callable[[Config], None] | None = None
    ) -> Watcher:
        """A watcher of the file that polls quickly."""
        return Watcher(
            self.path,
            on_change or self.changed,
            self.refuse,
            {},
            current=current,
            poll_every_s=POLL_EVERY_S,
        )

    def changed(self, config: Config) -> None:
        """Notes a new config."""
        self.ports.append(config.server.port)

    def refuse(self, error: ConfigError) -> None:
        """Notes a refusal."""
        self.refused.append(error.message)


async def until(condition: Callable[[], bool]) -> None:
    """Polls the condition until it holds."""
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while not condition():  # noqa: ASYNC110 # what is waited for is told by callbacks, not by an event
            await asyncio.sleep(POLL_EVERY_S)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good config file with port 1."""
    path = tmp_path / "home.yaml"
    path.write_text(text(1))
    return path


async def test_a_change_is_handed_over_once(file: Path) -> None:
    """Each changed content leads to one call, in the file's order, and the first content to none."""
    seen = Seen(file)
    async with seen.watcher(load(file, {})) as watcher:
        await until(lambda: watcher._digest is not None)
        put(file, text(2))
        await until(lambda: seen.ports == [2])
        put(file, text(3))
        await until(lambda: 3 in seen.ports)
    assert (seen.ports, seen.refused) == ([2, 3], [])


async def test_a_bad_file_is_refused_once_and_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad content is reported once, however often it is written, and the next good one counts."""
    reads: list[Path] = []

    def read(path: Path) -> str:
        reads.append(path)
        return read_text(path)

    monkeypatch.setattr(watch, "read_text", read)
    bad = text(0) + "oops: hunter2\n"
    seen = Seen(file)
    async with seen.watcher(load(file, {})):
        put(file, bad)
        await until(lambda: len(seen.refused) == 1)
        for _ in range(2):
            before = len(reads)
            put(file, bad)
            await until(lambda before=before: len(reads) > before)  # type: ignore[misc] # binds the loop's value
        put(file, text(2))
        await until(lambda: seen.ports == [2])
    assert len(seen.refused) == 1
    assert "oops: unknown key" in seen.refused[0]
    assert "hunter2" not in seen.refused[0]


async def test_back_to_the_config_in_force(file: Path) -> None:
    """A mistake that is taken back leads to no call, and the same mistake made later is told again."""
    seen = Seen(file)
    async with seen.watcher(load(file, {})) as watcher:
        for times in (1, 2):
            put(file, "oops: 1")
            await until(lambda times=times: len(seen.refused) == times)  # type: ignore[misc] # likewise
            digest = watcher._digest
            put(file, text(1))
            await until(lambda digest=digest: watcher._digest != digest)  # type: ignore[misc] # likewise
        put(file, text(2))
        await until(lambda: len(seen.ports) > 0)
    assert (seen.ports, len(seen.refused)) == ([2], 2)


async def test_a_file_still_being_written_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A content that is different at the next look was caught half-written, and is left alone."""
    looks = 0

    def look(path: Path) -> tuple[int, int, int, int]:
        nonlocal looks
        looks += 1
        if looks == 2:
            put(path, text(2)[:40])
        if looks == 3:
            put(path, text(2))
        return min(looks, 3), 0, 0, 0

    reads: list[Path] = []

    def read(path: Path) -> str:
        reads.append(path)
        return read_text(path)

    seen = Seen(file)
    monkeypatch.setattr(watch, "_stamp", look)
    monkeypatch.setattr(watch, "read_text", read)
    async with seen.watcher(load(file, {})):
        await until(lambda: seen.ports == [2] and looks > 8)
    assert seen.refused == []
    # Once at the beginning, once when it had settled, and not again while it stays the same.
    assert len(reads) == 2


async def test_a_content_that_says_the_same_is_no_change(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A touched file, or a new comment, is read and leads to no call."""
    caplog.set_level(logging.INFO, "tierfall.config")
    seen = Seen(file)
    async with seen.watcher(load(file, {})) as watcher:
        put(file, text(1) + "# a comment\n")
        watcher.reload_now()
        await until(lambda: "nothing has changed" in caplog.text)
    assert (seen.ports, seen.refused) == ([], [])
    assert "hunter2" not in caplog.text


async def test_the_symlinks_of_a_config_map(tmp_path: Path) -> None:
    """A Kubernetes ConfigMap changes by a swapped symlink two steps away, with size and times the same."""
    for number in (1, 2):
        (tmp_path / f"..v{number}").mkdir()
        target = tmp_path / f"..v{number}" / "home.yaml"
        target.write_text(text(number))
        os.utime(target, (1, 1))
    (tmp_path / "..data").symlink_to("..v1")
    file = tmp_path / "home.yaml"
    file.symlink_to("..data/home.yaml")
    seen = Seen(file)
    async with seen.watcher(load(file, {})) as watcher:
        await until(lambda: watcher._digest is not None)
        (tmp_path / "..tmp").symlink_to("..v2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        await until(lambda: seen.ports == [2])
    assert seen.refused == []


async def test_a_file_that_stays_away_is_told_once(file: Path) -> None:
    """A file that is gone is reported once, the config in force stays, and its return counts."""
    seen = Seen(file)
    async with seen.watcher(load(file, {})):
        take_away(file)
        await until(lambda: len(seen.refused) == 1)
        put(file, text(2))
        await until(lambda: seen.ports == [2])
    assert [message.partition(": ")[2] for message in seen.refused] == [
        "cannot be read: No such file or directory"
    ]


async def test_a_change_between_loading_and_watching_is_seen(file: Path) -> None:
    """With the config in force at hand, a change made before the watch began is handed over."""
    current = load(file, {})
    put(file, text(2))
    seen = Seen(file)
    async with seen.watcher(current):
        await until(lambda: seen.ports == [2])


async def test_without_a_config_in_force_the_first_content_is_it(file: Path) -> None:
    """The first content is then no change, and what follows is one."""
    seen = Seen(file)
    async with seen.watcher() as watcher:
        await until(lambda: watcher._current is not None)
        put(file, text(2))
        await until(lambda: 2 in seen.ports)
    assert seen.ports == [2]


async def test_reload_now_refuses_aloud_again(file: Path) -> None:
    """An operator who asks for a reload hears of the mistake again."""
    seen = Seen(file)
    put(file, "oops: 1")
    async with seen.watcher() as watcher:
        await until(lambda: len(seen.refused) == 1)
        watcher.reload_now()
        await until(lambda: len(seen.refused) == 2)
    assert seen.refused[0] == seen.refused[1]


async def test_reload_now_does_not_wait_for_the_poll(file: Path) -> None:
    """SIGHUP reads the file even when the next poll is an hour away."""
    seen = Seen(file)
    watcher = Watcher(file, seen.changed, seen.refuse, {}, current=load(file, {}), poll_every_s=3600)
    async with watcher:
        put(file, text(2))
        watcher.reload_now()
        await until(lambda: seen.ports == [2])


async def test_a_callback_that_fails_does_not_end_the_watch(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reload that fails half-way is logged, tried again on SIGHUP, and later changes are still seen."""
    seen = Seen(file)
    failures = [RuntimeError("half-way")]

    def fail_once(config: Config) -> None:
        if failures:
            raise failures.pop()
        seen.changed(config)

    async with seen.watcher(load(file, {}), fail_once) as watcher:
        put(file, text(2))
        await until(lambda: not failures)
        watcher.reload_now()
        await until(lambda: seen.ports == [2])
        put(file, text(3))
        await until(lambda: seen.ports == [2, 3])
    assert "the reload failed half-way" in caplog.text
    assert "hunter2" not in caplog.text


async def test_stop_leaves_no_task(file: Path) -> None:
    """A stopped watcher has no task left, may be stopped again, and says nothing any more."""
    seen = Seen(file)
    watcher = seen.watcher(load(file, {}))
    watcher.start()
    await watcher.stop()
    await watcher.stop()
    put(file, text(2))
    watcher.reload_now()
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()
    assert seen.ports == []
