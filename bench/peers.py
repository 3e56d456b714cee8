"""How each system is started, as its makers advise for production, in front of the same backend.

All of them ask for a client key, write logs to a file, and know the backend's models by the same names.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from bench.backend import AT_ONCE, PACED, REFUSED, SILENT
from bench.installs import install, version
from bench.processes import Process, free_port, running, wait_for_port
from tierfall.cli.up.nats import LIMITS
from tierfall.cli.up.program import NATS_ENVIRON

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY: Final = "sk-bench-0123456789abcdef0123456789abcdef"
START_S: Final = 20.0
LITELLM_START_S: Final = 180.0
LITELLM_STREAMS: Final = 20
"""More than it can serve in time on two cores."""
SILENCE_S: Final = 0.5
"""Tierfall's first-token deadline on the silent tier."""
MANY: Final = 4096

BEHIND: Final = {
    "absent": "no worker runs for the first tier",
    "down": "the first tier's engine refuses connections",
    "refusing": "the first tier's engine is healthy and answers 503 to each chat",
    "silent": f"the first tier's engine is healthy and never answers; deadline {SILENCE_S * 1000:g} ms",
}
"""Tierfall's models ``behind-<name>``: a tier at fault, then the healthy one."""


class System(msgspec.Struct, kw_only=True):
    """One running system.

    Attributes:
        name: What it is called in the results.
        ports: Where it listens for chats.
        processes: All that it consists of, without the backend.
        max_streams: More would only show how a queue grows.
    """

    name: str
    version: str
    ports: tuple[int, ...]
    processes: list[Process]
    max_streams: int = MANY


class Place(msgspec.Struct, frozen=True):
    """Where a system runs: the folder of its configs and logs, and the backend's port."""

    folder: Path
    backend: int

    @property
    def base_url(self) -> str:
        """The backend's."""
        return f"http://127.0.0.1:{self.backend}/v1"


@contextlib.contextmanager
def backend(folder: Path) -> Iterator[Place]:
    """The fake engine behind all of them."""
    port = free_port()
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "bench.backend", str(port)]
    with running("backend", command, folder, {"PYTHONPATH": str(root)}) as process:
        wait_for_port(process, port, START_S)
        yield Place(folder, port)


@contextlib.contextmanager
def direct(place: Place) -> Iterator[System]:
    """The backend alone: what the load and the backend themselves take."""
    yield System(name="direct", version="", ports=(place.backend,), processes=[])


@contextlib.contextmanager
def ferro(place: Place) -> Iterator[System]:
    """Ferro: one binary; its limit per address is off, since all load comes from one."""
    commands = install("ferro")
    port = free_port()
    config = place.folder / "ferro.yaml"
    config.write_text("strategy: {mode: single}\ntargets: [{virtual_key: openai}]\n")
    environ = {
        "GATEWAY_CONFIG": str(config),
        "MASTER_KEY": KEY,
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": place.base_url,
        "PORT": str(port),
        "LOG_LEVEL": "error",
        "RATE_LIMIT_RPS": "0",
    }
    with running("ferro", [commands / "ferrogw", "serve"], place.folder, environ) as process:
        wait_for_port(process, port, START_S)
        yield System(name="ferro", version=version("ferrogw", "ferro"), ports=(port,), processes=[process])


LITELLM_CONFIG: Final = """\
model_list:
{models}
general_settings: {{master_key: {key}}}
litellm_settings: {{request_timeout: 600, set_verbose: false, json_logs: true}}
"""
LITELLM_MODEL: Final = """\
- model_name: {name}
  litellm_params: {{model: openai/{name}, api_base: "{base_url}", api_key: none}}"""


@contextlib.contextmanager
def litellm(place: Place) -> Iterator[System]:
    """LiteLLM's proxy: a worker process per core, no database."""
    commands = install("litellm")
    port = free_port()
    config = place.folder / "litellm.yaml"
    models = "\n".join(LITELLM_MODEL.format(name=name, base_url=place.base_url) for name in (AT_ONCE, PACED))
    config.write_text(LITELLM_CONFIG.format(models=models, key=KEY))
    workers = str(os.cpu_count() or 1)
    options = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", workers, "--telemetry", "False"]
    environ = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command: list[str | Path] = [commands / "litellm", "--config", config, *options]
    with running("litellm", command, place.folder, environ) as process:
        wait_for_port(process, port, LITELLM_START_S)
        yield System(
            name="litellm",
            version=version("litellm", "litellm"),
            ports=(port,),
            processes=[process],
            max_streams=LITELLM_STREAMS,
        )


TIERFALL_CONFIG: Final = """\
server: {{port: {port}, api_keys: ["${{BENCH_KEY}}"]}}
nats: {{url: "nats://127.0.0.1:{nats}"}}
tiers:
  engine: {{worker: vllm, base_url: "{base_url}", max_in_flight: {many}}}
  absent: {{worker: ollama, base_url: "http://127.0.0.1:1"}}
  down: {{worker: vllm, base_url: "http://127.0.0.1:1/v1"}}
  refusing: {{worker: vllm, base_url: "{base_url}"}}
  silent: {{worker: vllm, base_url: "{base_url}"}}
models:
  {at_once}: {{tier: engine, backend_model: {at_once}}}
  {paced}: {{tier: engine, backend_model: {paced}}}
  behind-absent: {{tier: absent, backend_model: {at_once}, fallbacks: [{at_once}]}}
  behind-down: {{tier: down, backend_model: {at_once}, fallbacks: [{at_once}]}}
  behind-refusing: {{tier: refusing, backend_model: {refused}, fallbacks: [{at_once}]}}
  behind-silent:
    tier: silent
    backend_model: {silent}
    fallbacks: [{at_once}]
    deadlines: {{first_token: {silence_ms:g}ms}}
"""
NATS_CONFIG: Final = f"""\
host: 127.0.0.1
port: {{port}}
{LIMITS}"""


class Tierfall(msgspec.Struct, frozen=True, kw_only=True):
    """How much of Tierfall to start; :meth:`start` is what the others have as a function."""

    name: str = "tierfall"
    ingresses: int = 1
    workers: int = 1
    sampled: float = 0.0
    """The share of requests that are traced; above 0 the backend plays the collector."""

    @contextlib.contextmanager
    def start(self, place: Place) -> Iterator[System]:
        """A nats-server and each service, started as ``tierfall up`` starts them: metrics on."""
        commands = Path(sys.executable).parent
        environ = {"BENCH_KEY": KEY} | self._tracing(place) | NATS_ENVIRON
        nats_port = free_port()
        ports = tuple(free_port() for _ in range(self.ingresses))
        nats_config = place.folder / f"{self.name}-nats.conf"
        nats_config.write_text(NATS_CONFIG.format(port=nats_port))
        with contextlib.ExitStack() as started:

            def run(name: str, *command: str | Path) -> Process:
                process = started.enter_context(running(name, command, place.folder, environ))
                processes.append(process)
                return process

            processes: list[Process] = []
            nats = run(f"{self.name}-nats", commands / "nats-server", "--config", nats_config)
            wait_for_port(nats, nats_port, START_S)
            configs = [self._config(place, port, nats_port) for port in ports]
            for number in range(self.workers):
                http = f"127.0.0.1:{free_port()}"
                worker = commands / "tierfall-worker-vllm"
                run(f"{self.name}-worker-{number}", worker, "--config", configs[0], "--http", http)
            for number, (config, port) in enumerate(zip(configs, ports, strict=True)):
                ingress = run(
                    f"{self.name}-ingress-{number}", commands / "tierfall-ingress", "--config", config
                )
                wait_for_port(ingress, port, START_S)
            yield System(name=self.name, version=version("tierfall"), ports=ports, processes=processes)

    def _tracing(self, place: Place) -> dict[str, str]:
        if not self.sampled:
            return {}
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{place.backend}",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(self.sampled),
        }

    def _config(self, place: Place, port: int, nats_port: int) -> Path:
        """One ingress's config file; its workers read the first one's."""
        path = place.folder / f"{self.name}-{port}.yaml"
        path.write_text(
            TIERFALL_CONFIG.format(
                port=port,
                nats=nats_port,
                base_url=place.base_url,
                many=MANY,
                silence_ms=SILENCE_S * 1000,
                at_once=AT_ONCE,
                paced=PACED,
                refused=REFUSED,
                silent=SILENT,
            )
        )
        return path
