"""The pages of operators: on the port of the API or on one of their own, open or with a key."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import httpx
import pytest

from fakes.gateway import KEYS, SERVER, Gateway, asking
from fakes.polling import until
from tierfall.worker import Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGES = ["/metrics", "/metrics/", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"]
PROBES = ["/health/liveliness", "/health/liveness", "/health/readiness"]
API = ["/v1/models", "/v1/models/first", "/v1/quotas", "/v1/chat/completions", "/embeddings"]
CLIENT = {"Authorization": "Bearer sk-all-1234567890"}
ADMIN = {"Authorization": "Bearer sk-admin-12345"}
ADDRESS = "http://10.1.2.3:8000/v1"


class Guarded(Gateway):
    """A gateway whose operators have a port, keys, or both."""

    def __init__(self, server: str, more: str) -> None:
        super().__init__(server.replace("server: {", f"server: {{{more}, "))
        self._environ |= {"ADMIN_KEY": "sk-admin-12345"}

    @property
    def admin(self) -> httpx.AsyncClient:
        """A client of the operators' port."""
        port = self.server.servers[-1].sockets[0].getsockname()[1]
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)


@pytest.fixture
async def both() -> AsyncIterator[Guarded]:
    """Client keys, a port and a key for operators; one backend is down."""
    async with Guarded(KEYS, "admin: {port: 0}, admin_keys: ['${ADMIN_KEY}']") as running:
        running.one.health = Health("down", f"one at {ADDRESS} cannot be reached")
        await until(lambda: running.state("one") == "down")
        yield running


async def test_pages_are_on_their_own_port_alone(both: Guarded) -> None:
    """With the key there, not at all on the API's; the API is not on theirs; probes are on both."""
    async with both.admin as admin:
        for path in PAGES:
            assert (await admin.get(path, headers=ADMIN)).status_code == 200, path
            assert (await both.client.get(path, headers=ADMIN)).status_code == 404, path
        for path in API:
            assert (await admin.get(path, headers=CLIENT)).status_code == 404, path
            assert (await admin.post(path, headers=ADMIN, json=asking())).status_code == 404, path
        for path in PROBES:
            assert (await admin.get(path)).status_code == 200
            assert (await both.client.get(path)).status_code == 200
    assert (await both.client.post("/v1/chat/completions", json=asking(), headers=CLIENT)).status_code == 200


async def test_pages_need_an_operators_key(both: Guarded) -> None:
    """As a bearer token, or as the password that a browser asks for; a client's key is none."""
    basic = base64.b64encode(b"me:sk-admin-12345").decode()
    async with both.admin as admin:
        for headers in (ADMIN, {"Authorization": f"Basic {basic}"}):
            for path in [*PAGES, "/health"]:
                assert (await admin.get(path, headers=headers)).status_code == 200
        wrong = ["", "Bearer x", "Basic ====", "Basic /w==", f"Digest {basic}", CLIENT["Authorization"]]
        for authorization in wrong:
            for path in [*PAGES, "/health"]:
                answer = await admin.get(path, headers={"Authorization": authorization})
                assert answer.status_code == 401, authorization
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers.get_list("www-authenticate")[1].startswith("Basic realm=")
    assert (await both.client.get("/v1/models", headers=ADMIN)).status_code == 401


async def test_only_operators_read_the_whole_health(both: Guarded) -> None:
    """A client's key shows its models and tiers, and no worker, address or setting, though it may use all."""
    async with both.admin as admin:
        for whole in (
            await admin.get("/health", headers=ADMIN),
            await both.client.get("/health", headers=ADMIN),
        ):
            tier = whole.json()["tiers"]["one"]
            assert ADDRESS in tier["reason"]
            assert tier["workers"]
            assert whole.json()["open_files_limit"] > 0
    client = await both.client.get("/health", headers=CLIENT)
    assert client.json()["models"].keys() == both.config.models.keys()
    assert client.json()["tiers"]["one"] == {
        "state": "down",
        "reason": "one at [hidden] cannot be reached",
        "benched": False,
    }
    for hidden in ("10.1.2.3", "open_files", "workers", *(process.id for process in both.workers.values())):
        assert hidden not in client.text


async def test_keys_without_a_port() -> None:
    """The pages stay where they are and need the key; clients go on as they did."""
    async with Guarded(SERVER, "admin_keys: ['${ADMIN_KEY}']") as gateway:
        for path in PAGES:
            assert (await gateway.client.get(path)).status_code == 401
            assert (await gateway.client.get(path, headers=ADMIN)).status_code == 200
        assert "workers" not in (await gateway.client.get("/health")).text
        assert "workers" in (await gateway.client.get("/health", headers=ADMIN)).text
        assert (await gateway.client.post("/v1/chat/completions", json=asking())).status_code == 200
        gateway.services.apply(
            gateway.parse(SERVER + gateway.text.partition("\n")[2])
        )  # the keys are taken out
        assert (await gateway.client.get("/metrics")).status_code == 200


async def test_a_port_without_keys_is_no_web_pages() -> None:
    """On loopback it may be open; what holds for a server without keys holds there."""
    async with Guarded(KEYS, "admin: {port: 0}") as gateway, gateway.admin as admin:
        for path in [*PAGES, "/health"]:
            assert (await admin.get(path)).status_code == 200
            assert (await admin.get(path, headers={"Host": "evil.example"})).status_code == 403
            assert (await admin.get(path, headers={"Origin": "http://evil.example"})).status_code == 403
        assert (
            await gateway.client.get("/health", headers={**CLIENT, "Host": "evil.example"})
        ).status_code == 200
