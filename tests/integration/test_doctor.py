"""``tierfall doctor`` against a running gateway: real nats-server, workers and ingress."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes.nats_server import NatsServer
from fakes.polling import until
from fakes.scripted import ScriptedBackend, says
from fakes.stack import ASK, Stack
from tierfall.cli.doctor import Request, run
from tierfall.cli.doctor import nats as doctor_nats
from tierfall.cli.doctor.finding import Level
from tierfall.cli.doctor.nats import compared
from tierfall.errors import ProviderRefused, UnsupportedOperation
from tierfall.protocol.operation import Operation
from tierfall.worker import Health

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY = "sk-not-to-be-shown"
ENVIRON = {"CLIENT_KEY": KEY}
SERVER = "server: {api_keys: ['${CLIENT_KEY}']}\n"
TIERS = """
tiers:
  gpu: {worker: vllm, base_url: 'http://127.0.0.1:1/v1', max_in_flight: 1}
  cpu: {worker: ollama, base_url: 'http://127.0.0.1:1'}
models:
  first: {tier: gpu, backend_model: big, fallbacks: [second]}
  second: {tier: cpu, backend_model: small}
"""
CONFIG = SERVER + TIERS


class Report:
    """What one run of the doctor printed."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        self.body: dict[str, Any] = json.loads(text)

    def of(self, subject: str, level: str = "") -> list[dict[str, Any]]:
        """The findings about one thing."""
        found = self.body["findings"]
        return [one for one in found if one["subject"] == subject and one["level"].startswith(level)]


async def diagnose(
    path: Path, nats: str, config: str = CONFIG, *, environ: Mapping[str, str] = ENVIRON, **fields: Any
) -> Report:
    """Writes the config and runs the doctor on it, as the command does."""
    write(path, nats, config)
    return Report(*await examined(Request(config=path, json=True, **fields), environ))


def write(path: Path, nats: str, config: str = CONFIG, token: str = "") -> None:
    """Writes the config with the address of a NATS server."""
    path.write_text(f"nats: {{url: '{nats}'{token}}}\n{config}")


async def examined(request: Request, environ: Mapping[str, str] = ENVIRON) -> tuple[int, str]:
    """The command's exit status, and what it printed."""
    out = io.StringIO()
    return await asyncio.to_thread(run, request, environ, out), out.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the config goes."""
    return tmp_path / "tierfall.yaml"


def stack(gpu: ScriptedBackend | None, cpu: ScriptedBackend | None, **options: Any) -> Stack:
    """The gateway of these tests; a tier without a backend has no worker."""
    backends = {name: backend for name, backend in (("gpu", gpu), ("cpu", cpu)) if backend is not None}
    return Stack(CONFIG, backends, environ=ENVIRON, **options)


async def test_a_server_that_cannot_be_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too small a ``max_payload``, and no TLS where it is asked for, are named with what to change."""
    monkeypatch.setattr(doctor_nats, "CONNECT_S", 0.5)
    async with NatsServer("max_payload: 8192") as server:
        small = await diagnose(path, server.url)
    async with NatsServer() as server:
        plain = await diagnose(path, server.url.replace("nats://", "tls://"))
    for report, said in ((small, "its max_payload is 8192 bytes, and at least 65536"), (plain, "no TLS")):
        assert report.status != 0
        assert said in report.of("nats", "fail")[0]["text"]


async def test_a_healthy_system_is_all_ok(path: Path) -> None:
    """Every check says ok, each tier answers one trial with its time and attempts, and no key is shown."""
    gpu, cpu = ScriptedBackend(), ScriptedBackend()
    async with stack(gpu, cpu) as gateway:
        report = await diagnose(path, gateway.nats.url, url=gateway.url)
    assert report.status == 0
    assert report.body["ok"] is True
    assert {one["level"] for one in report.body["findings"]} == {"ok"}
    assert "nats-server 2." in report.of("nats")[0]["text"]
    assert "messages up to 1 MiB" in report.of("nats")[0]["text"]
    assert "0 of 1 slots taken" in report.of("tier gpu")[0]["text"]
    assert "first token after" in report.of("trial gpu")[0]["text"]
    assert report.of("trial gpu")[0]["text"].endswith("[gpu=ok]")
    assert report.of("trial cpu")[0]["text"].endswith("[cpu=ok]")
    assert len(report.of("clock", "ok")) == 2
    assert report.of("model first")[0]["text"] == "tier gpu answers, then second"
    assert [len(gpu.asks), len(cpu.asks)] == [1, 1]
    assert bytes(gpu.asks[0].body["max_tokens"]) == b"1"
    assert KEY not in report.text


async def test_an_old_engine_is_told_everywhere(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The worker's log, once; ``/health``; and the doctor as a warning, over NATS and without."""
    gpu, cpu = ScriptedBackend(), ScriptedBackend()
    gpu.health, cpu.health = Health("up", engine="vLLM 0.31.0"), Health("up", engine="Ollama 0.12.3")
    async with stack(gpu, cpu) as gateway:
        health = (await gateway.client.get("/health", headers={"authorization": f"Bearer {KEY}"})).json()
        report = await diagnose(path, gateway.nats.url, url=gateway.url, trial=False)
        unheard = await diagnose(path, "nats://127.0.0.1:1", url=gateway.url, trial=False)
    (worker,) = health["tiers"]["cpu"]["workers"]
    assert worker["engine"] == "Ollama 0.12.3"
    assert worker["advice"].endswith("update it to 0.17.1 or newer")
    assert health["tiers"]["gpu"]["workers"][0]["advice"] == ""
    assert report.status == 0
    for told in (report, unheard):
        assert [one["text"] for one in told.of("tier cpu", "warn")] == [worker["advice"]]
        assert told.of("tier gpu", "warn") == []
    assert caplog.text.count(f"tier cpu: {worker['advice']}") == 1
    assert "tier gpu: vLLM" not in caplog.text


async def test_a_missing_tier_that_another_covers_is_a_warning(path: Path) -> None:
    """The status stays 0: every model has somebody; the worker's command is there to paste."""
    async with stack(None, ScriptedBackend()) as gateway:
        report = await diagnose(path, gateway.nats.url, url=gateway.url, trial=False)
    assert report.status == 0
    (tier,) = report.of("tier gpu")
    assert tier["level"] == "warn"
    assert tier["command"] == f"tierfall-worker-vllm --config {path} --tier gpu"
    assert "second answers in its place" in report.of("model first", "warn")[0]["text"]


async def test_a_model_that_nobody_answers_fails(path: Path) -> None:
    """The backend's own reason is shown, the status is 1, and a worker that left is not counted."""
    gpu, cpu = ScriptedBackend(), ScriptedBackend()
    async with stack(gpu, cpu) as gateway:
        cpu.health = Health("down", "connection refused; is it running?")
        await until(lambda: gateway.state("cpu") == "down")
        await gateway.stop_worker("gpu-0")
        report = await diagnose(path, gateway.nats.url, url=gateway.url)
    assert report.status == 1
    assert report.body["verdict"] == "Nobody can answer: first, second."
    assert report.of("tier gpu", "fail")[0]["text"] == "no worker serves it"
    assert (
        "its backend is down: connection refused; is it running?" in report.of("tier cpu", "fail")[0]["text"]
    )
    assert "ladder: first > second" in report.of("model first", "fail")[0]["text"]
    assert report.of("trial gpu") == report.of("trial cpu") == []


async def test_a_tier_that_is_up_but_answers_nothing_is_found_by_its_trial(path: Path) -> None:
    """Its provider refuses every chat: the trial says why, and the model's only tier counts as gone."""
    gpu = ScriptedBackend()
    cpu = ScriptedBackend([[ProviderRefused("the provider refused the key")]] * 2)
    async with stack(gpu, cpu) as gateway:
        report = await diagnose(path, gateway.nats.url, url=gateway.url)
    assert report.status == 1
    (trial,) = report.of("trial cpu")
    assert "the provider refused the key" in trial["text"]
    assert trial["text"].endswith("[cpu=provider_refused]")
    assert report.of("model second", "fail")
    assert report.of("model first", "ok")


async def test_a_trial_that_escalates_is_no_success_of_its_tier(path: Path) -> None:
    """Another tier answered: the attempts say so, and the model is answered in its place."""
    gpu = ScriptedBackend([[ProviderRefused("no such model here")]])
    async with stack(gpu, ScriptedBackend()) as gateway:
        report = await diagnose(path, gateway.nats.url, url=gateway.url)
    assert report.status == 0
    text = report.of("trial gpu", "warn")[0]["text"]
    assert text == "first: tier cpu had to answer [gpu=provider_refused;cpu=ok]"
    assert "second answers in its place" in report.of("model first", "warn")[0]["text"]


@pytest.mark.parametrize("ingress", [True, False])
async def test_a_tier_that_only_embeds_is_tried_with_an_embedding(path: Path, ingress: bool) -> None:
    """Its model makes no text, which is no fault; with an ingress and without."""
    no_chat = UnsupportedOperation("this model is not one for /v1/chat/completions")
    gpu, cpu = ScriptedBackend(), ScriptedBackend([[no_chat]])
    async with stack(gpu, cpu) as gateway:
        report = await diagnose(path, gateway.nats.url, url=gateway.url if ingress else "http://127.0.0.1:1")
    (trial,) = report.of("trial cpu")
    assert trial["level"] == "ok", trial
    assert [ask.operation for ask in cpu.asks] == [Operation.CHAT, Operation.EMBEDDINGS]


async def test_without_an_ingress_tiers_are_tried_over_nats(path: Path) -> None:
    """The ingress is what fails; the tiers' trials still tell that they answer, and leave nothing running."""
    gpu = ScriptedBackend()
    cpu = ScriptedBackend([[ProviderRefused("the provider refused the key")]])
    async with stack(gpu, cpu) as gateway:
        report = await diagnose(path, gateway.nats.url, url="http://127.0.0.1:1")
        await until(lambda: gpu.running == 0 and not any(p._jobs for p in gateway.workers.values()))
    assert report.status == 1
    assert "does not answer" in report.of("ingress", "fail")[0]["text"]
    assert report.of("trial gpu", "ok")[0]["text"].endswith("over NATS")
    assert "(provider_refused), over NATS" in report.of("trial cpu", "warn")[0]["text"]
    assert report.body["verdict"] == "Nobody can answer: second. To be mended first: ingress."


async def test_a_wrong_key_is_told_from_a_missing_one(path: Path) -> None:
    """A refused key names where it is from; one that is not set names the variable, and the rest goes on."""
    async with stack(ScriptedBackend(), ScriptedBackend()) as gateway:
        url = gateway.url
        wrong = await diagnose(path, gateway.nats.url, url=url, key="sk-wrong-key", trial=False)
        unset = await diagnose(path, gateway.nats.url, url=url, environ={}, trial=False)
    assert wrong.status == unset.status == 1
    assert wrong.of("keys", "fail")[0]["text"] == "refuses --key: this API key is not known here"
    assert "sk-wrong-key" not in wrong.text
    (problem,) = unset.of("config", "fail")
    assert "CLIENT_KEY is not set" in problem["text"]
    assert problem["command"] == "export CLIENT_KEY=..."
    assert "wants a key, and there is none here" in unset.of("keys", "fail")[0]["text"]
    assert unset.of("tier gpu", "ok")


async def test_full_slots_and_missing_models_are_warnings(path: Path) -> None:
    """A tier whose slots are all taken, and a backend that lacks the configured model; no trial is sent."""
    hold = asyncio.Event()
    gpu, cpu = ScriptedBackend([[hold, *says("Done.")]]), ScriptedBackend()
    cpu.health = Health("up", "", ("other:3b",))
    async with stack(gpu, cpu) as gateway:
        headers = {"Authorization": f"Bearer {KEY}"}
        asking = asyncio.create_task(gateway.client.post("/v1/chat/completions", json=ASK, headers=headers))
        await until(lambda: gpu.running == 1)
        report = await diagnose(path, gateway.nats.url, url=gateway.url, trial=False)
        hold.set()
        assert (await asking).status_code == 200
    assert report.status == 0
    assert "1 of 1 slots taken" in report.of("tier gpu", "warn")[0]["text"]
    lacking = report.of("tier cpu", "warn")[0]
    assert "does not list small; it has other:3b" in lacking["text"]
    assert lacking["command"] == "ollama pull small"
    assert len(gpu.asks) == 1
    assert cpu.asks == []


async def test_nats_that_is_away_or_refuses_is_named(path: Path) -> None:
    """Nothing at the address, a server that wants a token, and a token that it does not know read apart."""
    away = await diagnose(path, "nats://127.0.0.1:1", url="http://127.0.0.1:1")
    async with NatsServer('authorization { token: "right" }') as server:
        none = await diagnose(path, server.url, url="http://127.0.0.1:1")
        write(path, server.url, token=", token: '${NATS_TOKEN}'")
        request = Request(config=path, url="http://127.0.0.1:1", json=True)
        wrong = Report(*await examined(request, {**ENVIRON, "NATS_TOKEN": "wrong"}))
    assert away.status == none.status == wrong.status == 1
    assert "nothing answers at 127.0.0.1:1" in away.of("nats", "fail")[0]["text"]
    assert "the config has none" in none.of("nats", "fail")[0]["text"]
    refused = wrong.of("nats", "fail")[0]
    assert "does not know this token or user" in refused["text"]
    assert refused["command"] == "export NATS_TOKEN=..."
    assert wrong.of("models", "fail")


async def test_an_ingress_can_tell_where_nats_cannot_be_asked(path: Path) -> None:
    """From a machine that NATS does not let in: what the ingress sees, and the trials through it."""
    async with stack(ScriptedBackend(), None) as gateway:
        report = await diagnose(path, "nats://127.0.0.1:1", url=gateway.url)
    assert report.status == 1
    assert report.body["verdict"] == "Nobody can answer: second. To be mended first: nats."
    assert report.of("trial gpu", "ok")
    assert report.of("model first", "ok")


async def test_a_user_who_may_not_hear_the_workers_is_told_so(path: Path) -> None:
    """No tier is called dead for that: what the ingress sees counts, and without it nothing is claimed."""
    open_user = "{ user: all, password: p }"
    deaf_user = '{ user: deaf, password: p, permissions: { publish: ["a"], subscribe: ["_INBOX.>"] } }'
    rules = f"authorization {{ users: [{open_user}, {deaf_user}] }}\nno_auth_user: all"
    async with NatsServer(rules) as server, stack(ScriptedBackend(), None, nats=server) as gateway:
        creds = server.url.replace("//", "//deaf:p@")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tierfall.config.check._nats", lambda _: ())  # a password in the URL is refused
            report = await diagnose(path, creds, url=gateway.url)
            alone = await diagnose(path, creds, url="http://127.0.0.1:1")
    assert "may not hear the workers" in report.of("nats", "warn")[0]["text"]
    assert report.of("tier gpu") == report.of("tier cpu") == []
    assert report.of("model first", "ok")
    assert report.of("model second", "fail")
    assert alone.of("models", "fail")


async def test_every_problem_of_the_file_is_told(path: Path) -> None:
    """A file that cannot be used ends the examination there, with one finding for each problem."""
    broken = TIERS.replace("max_in_flight: 1", "max_in_flight: none").replace("[second]", "[sceond]")
    report = await diagnose(path, "nats://127.0.0.1:1", SERVER + broken)
    assert report.status == 1
    texts = [one["text"] for one in report.body["findings"]]
    assert {one["subject"] for one in report.body["findings"]} == {"config"}
    assert any("max_in_flight" in text for text in texts)


async def test_people_get_lines_with_commands(path: Path) -> None:
    """The text form: level, subject and meaning on one line, what to type under it, a verdict last."""
    write(path, "nats://127.0.0.1:1")
    status, text = await examined(Request(config=path, url="http://127.0.0.1:1"))
    lines = text.splitlines()
    assert status == 1
    assert lines[0].startswith("ok    config ")
    at = next(place for place, line in enumerate(lines) if line.startswith("FAIL  nats "))
    assert lines[at + 1].lstrip() == "> nats-server --port 1"
    assert lines[-1] == "To be mended first: nats, ingress, models."
    assert "\x1b" not in text


def test_a_clock_that_is_off_is_a_warning_with_its_direction() -> None:
    """Within what the workers tolerate it is well; beyond, the finding says by how much and which way."""
    assert compared("the NATS server's", -1.9).level is Level.OK
    ahead, behind = compared("the NATS server's", 9.0), compared("the NATS server's", -5.0)
    assert ahead.level is behind.level is Level.WARN
    assert ahead.text.startswith("9 s ahead of the NATS server's")
    assert behind.text.startswith("5 s behind the NATS server's")
