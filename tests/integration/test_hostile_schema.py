"""Schemathesis over our own OpenAPI document: what it allows is answered, what it forbids is refused."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from fakes.behaviour import TEXT, Answer
from fakes.polling import until
from fakes.provider import FakeProvider
from fakes.stack import Stack
from tierfall.protocol.operation import Operation
from tierfall_worker_vllm.main import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONFIG: Final = """
server: {{api_keys: ['${{CLIENT_KEY}}']}}
tiers:
  a: {{worker: vllm, base_url: '{url}', max_in_flight: 8}}
models:
  vllm-qwen: {{tier: a, backend_model: fake-model}}
  groq/mixtral-8x7b-32768: {{tier: a, backend_model: fake-model}}
  'qwen2.5:3b': {{tier: a, backend_model: fake-model}}
"""
KEY: Final = "sk-schema-1234567890"
SEED: Final = 20_261
EXAMPLES: Final = 80
"""Of each operation, besides those that enumerate the document's borders."""
SCHEMATHESIS: Final = Path(sys.executable).with_name("schemathesis")


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """It answers everything."""
    async with FakeProvider() as running:
        running.default = Answer(TEXT)
        yield running


@pytest.fixture
async def gateway(provider: FakeProvider) -> AsyncIterator[Stack]:
    """The gateway, with a key."""
    config = CONFIG.format(url=provider.base_url)
    async with Stack(config, builds={"vllm": build}, environ={"CLIENT_KEY": KEY}) as stack:
        await until(lambda: stack.state("a") == "up")
        yield stack


async def run(where: Path, document: str, gateway: Stack) -> tuple[int, str]:
    """One run with all of its checks; returns its exit status and what it found."""
    process = await asyncio.create_subprocess_exec(
        *(SCHEMATHESIS, "run", document, "--url", gateway.url, "--no-color", "--checks", "all"),
        *("--header", f"Authorization: Bearer {KEY}", "--continue-on-failure"),
        *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--generation-database", "none"),
        *("--suppress-health-check", "all", "--request-timeout", "20", "--warnings", "off"),
        cwd=where,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode()


def naming_models(document: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The document with the configured names in it, so that requests get as far as a backend."""
    for operation in Operation:
        asked = document["paths"][f"/v1{operation.path}"]["post"]["requestBody"]["content"]
        schema = asked["application/json"]["schema"]
        schema["properties"]["model"] = {**schema["properties"]["model"], "enum": names}
    document["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["schema"]["enum"] = names
    return document


async def document_of(gateway: Stack) -> dict[str, Any]:
    """As it is served."""
    document: dict[str, Any] = (await gateway.client.get("/openapi.json")).json()
    return document


async def is_kept(document: dict[str, Any], where: Path, gateway: Stack) -> None:
    """A run finds nothing, and leaves nothing."""
    (where / "openapi.json").write_text(json.dumps(document))
    status, found = await run(where, "openapi.json", gateway)
    assert status == 0, found
    assert "No issues found" in found, found
    await until(lambda: gateway.services.switchboard.open_lines == 0)


@pytest.mark.timeout(180)
async def test_the_document_is_kept(gateway: Stack, tmp_path: Path) -> None:
    """No 5xx, no error that is not the error object, nothing answered that the document does not allow."""
    await is_kept(await document_of(gateway), tmp_path, gateway)


@pytest.mark.timeout(180)
async def test_the_document_is_kept_by_answers(
    gateway: Stack, provider: FakeProvider, tmp_path: Path
) -> None:
    """The same when the names of the models are known, so that a backend answers what is allowed."""
    await is_kept(naming_models(await document_of(gateway), list(gateway.config.models)), tmp_path, gateway)
    asked = [request.json for request in provider.requests if request.path.endswith("/chat/completions")]
    assert len(asked) > EXAMPLES / 2
    assert [body for body in asked if body.get("n")]
