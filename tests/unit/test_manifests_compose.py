"""What compose.yaml and the Dockerfiles promise, read from the files."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from fakes.manifests import ROOT, read
from tierfall.cli.main import main
from tierfall.config import load
from tierfall.worker.process import DRAIN_S

SERVICES: Final = ("ingress", "worker-vllm", "worker-ollama", "worker-cloud")
OURS: Final = (*SERVICES, "nats-users")
PROVIDER_KEYS: Final = {"OPENAI_API_KEY", "GROQ_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of compose.yaml, with their anchors resolved."""
    found: dict[str, Any] = read("compose.yaml")["services"]
    return found


def volumes(service: dict[str, Any]) -> dict[str, str]:
    """Where each volume or folder is mounted."""
    return dict(mount.split(":")[:2] for mount in service.get("volumes", ()))


def test_the_whole_gateway_is_there(services: dict[str, Any]) -> None:
    """NATS, the services and what watches them by default; engines behind profiles."""
    by_default = {name for name, service in services.items() if "profiles" not in service}
    assert by_default == {*OURS, "nats", "jaeger", "prometheus", "grafana"}
    assert services["ollama"]["profiles"] == ["ollama"]
    assert services["vllm"]["profiles"] == ["gpu"]


def test_services_are_confined_and_come_back(services: dict[str, Any]) -> None:
    """Read-only, without privileges, restarted when they die, and not root but for handing out the seeds."""
    for name, service in services.items():
        assert service["restart"] == ("no" if name == "nats-users" else "unless-stopped")
        if "profiles" not in service:
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
    assert [name for name in services if services[name].get("user") == "0"] == ["nats-users"]


def test_only_its_worker_reaches_an_engine(services: dict[str, Any]) -> None:
    """Engines ask for no key, and NATS is for those with a seed: each has a network of its own."""
    members: dict[str, set[str]] = {}
    for name, service in services.items():
        for network in service.get("networks", ["default"]):
            members.setdefault(network, set()).add(name)
    assert members["ollama"] == {"ollama", "worker-ollama"}
    assert members["vllm"] == {"vllm", "worker-vllm"}
    assert members["bus"] == {"nats", *OURS}
    assert not members["default"] & {"nats", "ollama", "vllm"}
    assert read("compose.yaml")["networks"]["bus"] == {"internal": True}
    for name in ("ollama", "vllm"):
        assert "ports" not in services[name]
        assert "ipc" not in services[name]
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


def test_no_secret_stands_in_the_file(services: dict[str, Any]) -> None:
    """Secrets come from .env, whose example names every variable that is used and holds no secret."""
    text = (ROOT / "compose.yaml").read_text()
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    used = set(re.findall(r"\$\{([A-Z_]+)", text)) - {"BUILD_NETWORK"}
    assert used == set(example)
    assert {name: value for name, value in example.items() if value} == {"TIERFALL_LISTEN": "127.0.0.1"}
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search("KEY|PASSWORD|TOKEN|SECRET", name):
                assert str(value).startswith("${")


def test_each_service_sees_its_own_secrets_alone(services: dict[str, Any]) -> None:
    """Providers' keys go to the cloud worker, the client key to the ingress, each NATS seed to its user."""
    for name in SERVICES:
        keys = {key for key in services[name]["environment"] if key.endswith("KEY")}
        assert keys == (
            {"TIERFALL_KEY"} if name == "ingress" else PROVIDER_KEYS if name == "worker-cloud" else set()
        )
        mounted = volumes(services[name])
        assert [volume for volume in mounted if volume.startswith("key-")] == [f"key-{name}"]
        assert mounted[f"key-{name}"] == "/run/tierfall"
    assert volumes(services["nats"]) == {"nats-conf": "/etc/nats", "nats-data": "/data"}


def test_nothing_is_published_beyond_loopback(services: dict[str, Any]) -> None:
    """Only the gateway can be opened to the network, and only by saying so in .env."""
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published.pop("ingress") == ["${TIERFALL_LISTEN:-127.0.0.1}:4000:4000"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert not set(published) & {"nats", *SERVICES}


def test_nats_server_takes_its_config(
    services: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-server itself, with the options that it is given, reads what ``nats-users`` writes for it."""
    monkeypatch.setattr("sys.stdout", io.StringIO())
    writes = services["nats-users"]["command"][0].partition(" && ")[0].split()
    there = {"/keys": str(tmp_path), "/etc/tierfall/compose.yaml": str(ROOT / "examples" / "compose.yaml")}
    assert writes[:2] == ["tierfall", "nats-config"]
    assert main([there.get(word, word) for word in writes[1:]]) == 0
    conf = {"/etc/nats/nats.conf": str(tmp_path / "nats" / "nats.conf")}
    options = [conf.get(word, word) for word in services["nats"]["command"]]
    server = str(Path(sys.executable).with_name("nats-server"))
    ran = subprocess.run([server, "-t", *options], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603 - ours
    assert ran.returncode == 0, ran.stderr
    stored = re.findall(r'store_dir: "([^"]+)"', (tmp_path / "nats" / "nats.conf").read_text())
    assert stored == [volumes(services["nats"])["nats-data"]]


def test_workers_scale_and_drain(services: dict[str, Any]) -> None:
    """Nothing ties a worker to one container; it is given longer to stop than its drain takes."""
    for name in SERVICES:
        assert "container_name" not in services[name]
        assert float(services[name]["stop_grace_period"].removesuffix("s")) >= DRAIN_S + 5
        assert services[name]["depends_on"] == {"nats": {"condition": "service_healthy"}}


def test_its_config_can_be_used(services: dict[str, Any]) -> None:
    """examples/compose.yaml is a good config that names the services as they are."""
    config = load(ROOT / "examples" / "compose.yaml", {"TIERFALL_KEY": "sk-1"})
    assert config.nats.address == "nats://nats:4222"
    assert config.nats.nkey == "/run/tierfall/nkey"
    hosts = {
        re.sub(r"^http://([^:/]+).*", r"\1", getattr(tier, "base_url", "")) for tier in config.tiers.values()
    }
    assert hosts - {""} == {"vllm", "ollama"} <= set(services)
    assert {tier.kind for tier in config.tiers.values()} == {name[7:] for name in SERVICES[1:]}


@pytest.mark.parametrize("name", SERVICES)
def test_images_hold_one_service_each(name: str) -> None:
    """Two stages; shared and one service; hashed locks; no root, no package index, a health check."""
    text = (ROOT / "services" / name / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert copied == [f"requirements/build.lock requirements/{name}.lock", "shared", f"services/{name}"]
    assert text.count("\nFROM ") == 2
    assert text.count("--require-hashes --no-deps --only-binary :all:") == 2
    assert "://" not in re.sub(r"http://127\.0\.0\.1", "", text)
    assert "\nUSER 10001:10001\n" in text
    assert "\nHEALTHCHECK " in text
    assert f'ENTRYPOINT ["tierfall-{name}"]' in text


@pytest.mark.parametrize("name", ["build", *SERVICES])
def test_locks_have_the_versions_of_the_run_lock(name: str) -> None:
    """An image runs what `make run` and the tests run."""
    pin = re.compile(r"^([a-z0-9_.-]+)==([^ ;\\]+)", re.MULTILINE)
    run = dict(pin.findall((ROOT / "requirements" / "run.lock").read_text()))
    image = dict(pin.findall((ROOT / "requirements" / f"{name}.lock").read_text()))
    assert image
    assert {
        package: version for package, version in image.items() if run.get(package, version) != version
    } == {}
