"""The service images, run as compose.yaml and Kubernetes run them, answer a client end to end."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from deploy.checks import trace
from fakes.fleet import KEY, QUERY_PORT, SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fakes.fleet import Fleet

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.2
ASK: Final = {"model": "first", "messages": [{"role": "user", "content": "Say hello."}]}


def until(condition: Callable[[], Any]) -> None:
    """Returns once it holds; containers set no event."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(POLL_S)


@contextlib.contextmanager
def gateway(container: Any) -> Iterator[httpx.Client]:
    """A client of the ingress, with the key, once it answers."""
    address = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(4000)}"
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=address, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        until(lambda: is_ready(client))
        yield client


def is_ready(client: httpx.Client) -> bool:
    """Whether the ingress is up and sees a worker whose backend is up."""
    try:
        return bool(client.get("/health").json()["healthy_count"])
    except (httpx.TransportError, KeyError):
        return False


def test_an_answer_end_to_end(fleet: Fleet) -> None:
    """Client, ingress, NATS with permissions, worker, engine: an answer, streamed and whole, and no root."""
    fleet.service("worker-vllm")
    ingress = fleet.service("ingress")
    with gateway(ingress) as client:
        whole = client.post("/v1/chat/completions", json=ASK)
        assert whole.json()["choices"][0]["message"]["content"] == "Hello from a container."
        streamed = client.post("/v1/chat/completions", json={**ASK, "stream": True}).text.split("\n\n")
        assert streamed[-2:] == ["data: [DONE]", ""]
        deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in streamed[:-2]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "Hello from a container."
        refused = client.post("/v1/chat/completions", json=ASK, headers={"Authorization": "Bearer wrong"})
        assert refused.status_code == 401
    assert ingress.exec(["id", "-u"]).output.strip() == b"10001"


def test_losing_a_worker_costs_nothing(fleet: Fleet) -> None:
    """With two workers, the one that is killed is not missed; with none, the client is told."""
    workers = [fleet.service("worker-vllm") for _ in range(2)]
    with gateway(fleet.service("ingress")) as client:
        until(lambda: len(client.get("/health").json()["tiers"]["one"]["workers"]) == 2)
        workers[0].get_wrapped_container().kill()
        for _ in range(5):
            assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        workers[1].get_wrapped_container().kill()
        told = client.post("/v1/chat/completions", json=ASK)
        assert (told.status_code, told.headers["x-tierfall-attempts"]) == (503, "one=no_workers")


def test_an_escalation_is_seen_in_jaeger(
    fleet: Fleet, jaeger: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images send their spans, and Jaeger has the escalated request as one whole trace."""
    fleet.service("worker-vllm")
    with gateway(fleet.service("ingress")) as client:
        until(lambda: client.get("/health").json()["tiers"]["gone"]["workers"])
        query = f"http://{jaeger.get_container_host_ip()}:{jaeger.get_exposed_port(QUERY_PORT)}"
        options = ["--gateway", str(client.base_url), "--jaeger", query, "--key", KEY, "--model", "second"]
        status = trace.main(options)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert printed.startswith("second: 200, gone=backend_down;one=ok, trace ")


@pytest.mark.parametrize("name", SERVICES)
def test_images_become_healthy_and_stop_in_order(fleet: Fleet, name: str) -> None:
    """The image's own health check comes to succeed with a read-only root, and SIGTERM ends it with 0."""
    container = fleet.service(name).get_wrapped_container()

    def health() -> str:
        container.reload()
        return str(container.attrs["State"]["Health"]["Status"])

    until(lambda: health() == "healthy")
    container.stop(timeout=30)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0
