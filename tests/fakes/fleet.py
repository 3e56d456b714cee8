"""The gateway in containers, for the tests in tests/docker."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fakes.manifests import read
from tierfall.cli import nats_config
from tierfall.config import parse

if TYPE_CHECKING:
    from contextlib import ExitStack

QUERY_PORT: Final = 16686
SERVICES: Final = ("ingress", "worker-vllm", "worker-ollama", "worker-cloud")
NATS: Final[str] = read("compose.yaml")["services"]["nats"]["image"]
JAEGER: Final[str] = read("compose.yaml")["services"]["jaeger"]["image"]
STORE: Final = "/data"
KEY: Final = "sk-docker-tests"
CONFIG: Final = """
server: {host: 0.0.0.0, port: 4000, api_keys: ['${TIERFALL_KEY}']}
nats: {url: nats://nats:4222, nkey: /run/tierfall/nkey}
tiers:
  one: {worker: vllm, base_url: 'http://engine:8000/v1'}
  gone: {worker: vllm, base_url: 'http://engine:1/v1'}
models:
  first: {tier: one, backend_model: tiny}
  second: {tier: gone, backend_model: tiny, fallbacks: [first]}
"""


def write_folder(folder: Path, engine: Path) -> None:
    """Config, seeds, NATS's permissions and the engine's script, readable by the containers' user."""
    for name, text in (("config/tierfall.yaml", CONFIG), ("engine/engine.py", engine.read_text())):
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    config = parse(CONFIG, {"TIERFALL_KEY": KEY}, "tierfall.yaml")
    nats_config.run(folder, config, 1, io.StringIO(), store_dir=Path(STORE))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


class Fleet:
    """The gateway in containers on a network of its own.

    Args:
        folder: Where its config and seeds are.
        network: They all join it.
        stack: Ends them.

    Attributes:
        environment: What our services find in theirs.
    """

    def __init__(self, folder: Path, network: Any, stack: ExitStack) -> None:
        self._folder = folder
        self._network = network
        self._stack = stack
        self.environment: dict[str, str] = {}

    def start(
        self, image: str, alias: str, command: list[str], volumes: dict[str, str], **options: Any
    ) -> Any:
        """One container, read-only as in compose.yaml."""
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - not in the dev lock

        container = DockerContainer(image).with_network(self._network).with_network_aliases(alias)
        container.with_command(command).with_kwargs(read_only=True, cap_drop=["ALL"], **options)
        for source, target in volumes.items():
            container.with_volume_mapping(str(self._folder / source), target, "ro")
        if alias == "ingress":
            container.with_exposed_ports(4000).with_env("TIERFALL_KEY", KEY)
        if alias == "nats":
            container.with_tmpfs_mount(STORE)
        for variable, value in self.environment.items():
            container.with_env(variable, value)
        return self._stack.enter_context(container)

    def service(self, name: str) -> Any:
        """One of our services, with its own seed."""
        command = ["--config", "/etc/tierfall/tierfall.yaml"]
        if name != "ingress":
            command += ["--http", "0.0.0.0:9400"]
        return self.start(
            f"tierfall/{name}", name, command, {"config": "/etc/tierfall", name: "/run/tierfall"}
        )

    def jaeger(self, image: str) -> Any:
        """Jaeger; services that start later send it their traces."""
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - not in the dev lock

        container = DockerContainer(image).with_network(self._network).with_network_aliases("jaeger")
        container.with_exposed_ports(QUERY_PORT).with_kwargs(read_only=True, cap_drop=["ALL"])
        self.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://jaeger:4318"
        return self._stack.enter_context(container)

    def nats(self, image: str) -> Any:
        """NATS with a user per service."""
        return self.start(
            image, "nats", ["--config", "/etc/nats/nats.conf"], {"nats": "/etc/nats"}, user="10001"
        )

    def engine(self) -> Any:
        """The tests' engine, in an image of ours for its Python."""
        quiet = {"test": ["NONE"]}
        return self.start(
            "tierfall/worker-vllm",
            "engine",
            ["/engine/engine.py"],
            {"engine": "/engine"},
            entrypoint="python",
            healthcheck=quiet,
        )
