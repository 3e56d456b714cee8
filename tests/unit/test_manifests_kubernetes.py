"""What the Kubernetes manifests promise: as files, and built where kustomize or kubectl is there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import kubernetes_validate
import pytest
import yaml

from fakes.manifests import (
    K8S,
    OVERLAYS,
    Manifest,
    build,
    containers,
    kustomize,
    manifests,
    named,
    read,
    resource_files,
    selects,
    workloads,
)
from tierfall.cli import nats_config
from tierfall.config import CloudTier, Config, load
from tierfall.worker.process import DRAIN_S as WORKER_DRAIN_S
from tierfall_ingress.main import DRAIN_S as INGRESS_DRAIN_S

KUBERNETES: Final = "1.33"
"""The schemas to check against; native sidecars are stable from this version on."""
SPARE_S: Final = 5
PROVIDER_KEYS: Final = {"OPENAI_API_KEY", "GROQ_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY"}
COME_LAST: Final = ("nats-tls", "tracing")
"""Components that change what the others bring: kustomize takes them in the order in which they are named."""
CUSTOM: Final = {
    "ScaledObject": {
        "scaleTargetRef",
        "pollingInterval",
        "minReplicaCount",
        "maxReplicaCount",
        "fallback",
        "advanced",
        "triggers",
    },
    "ServiceMonitor": {"jobLabel", "selector", "endpoints"},
    "PrometheusRule": {"groups"},
}
"""Kinds of KEDA and the Prometheus operator, for which there is no schema here: the keys that we use."""


@pytest.fixture(scope="module")
def config() -> Config:
    """The models that the pods read."""
    environ = {"TIERFALL_KEY": "sk-1", **dict.fromkeys(PROVIDER_KEYS, "sk-2")}
    return load(K8S / "base" / "models.yaml", environ)


def check_schema(manifest: Manifest) -> None:
    """Kubernetes' own schema, unknown fields refused; for custom kinds the keys."""
    if manifest["kind"] in CUSTOM:
        assert set(manifest["spec"]) <= CUSTOM[manifest["kind"]]
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", resource_files(), ids=lambda path: str(path.relative_to(K8S)))
def test_every_manifest_fits_its_schema(path: Path) -> None:
    """No field is misspelt, misplaced or of the wrong type."""
    for manifest in yaml.safe_load_all(path.read_text()):
        check_schema(manifest)


def test_the_schema_check_notices_mistakes() -> None:
    """A misspelt field is refused: the check above can fail."""
    (ingress,) = [
        item for item in manifests() if (item["kind"], item["metadata"]["name"]) == ("Deployment", "ingress")
    ]
    ingress["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        check_schema(ingress)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_build(overlay: str) -> None:
    """Each overlay builds without a warning, into manifests that fit their schemas."""
    command = kustomize()
    if command is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    built = build(command, K8S / overlay)
    for manifest in built:
        check_schema(manifest)
        assert manifest["metadata"].get("namespace", "tierfall") == "tierfall"
    models = [item for item in built if item["metadata"]["name"] == "tierfall-models"]
    assert len(models) == 1, "a stable name, so that a change reaches running pods"


def test_all_components_fit_together(tmp_path: Path) -> None:
    """With every component an overlay builds; TLS and traces reach our services, not the engines."""
    command = kustomize()
    if command is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    there = os.path.relpath(K8S, tmp_path.resolve())
    names = {path.name for path in (K8S / "components").iterdir()}
    components = [*sorted(names - set(COME_LAST)), *COME_LAST]
    mine = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "tierfall",
        "resources": [f"{there}/base"],
        "components": [f"{there}/components/{name}" for name in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    built = build(command, tmp_path)
    for manifest in built:
        check_schema(manifest)
    told = {
        f"{item['metadata']['name']} {container['name']}": {
            entry["name"] for entry in container.get("env", ())
        }
        for item in built
        if item["kind"] == "Deployment"
        for container in containers(item)
    }
    ours = {name: names for name, names in told.items() if not name.endswith(" engine")}
    assert sorted(ours) == ["ingress ingress", "ollama worker", "vllm worker", "worker-cloud worker"]
    assert all({"OTEL_EXPORTER_OTLP_ENDPOINT", "SSL_CERT_FILE"} <= names for names in ours.values())
    engines = {name: names for name, names in told.items() if name not in ours}
    assert not any("OTEL_EXPORTER_OTLP_ENDPOINT" in names for names in engines.values())


def test_no_file_is_left_out() -> None:
    """Every manifest in the folder is named by a kustomization; what is not is config or an example."""
    written = {
        path for path in K8S.rglob("*.yaml") if path.name not in {"kustomization.yaml", "secrets.yaml"}
    }
    assert {path.name for path in written - set(resource_files())} == {"models.yaml", "secrets.example.yaml"}


@pytest.mark.parametrize("name", workloads())
def test_containers_are_confined(name: str) -> None:
    """No privileges, a read-only root and no root user for our own; what they need is asked for."""
    workload = workloads()[name]
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    for container in containers(workload):
        security = pod.get("securityContext", {}) | container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert "livenessProbe" in container
        if container["name"] != "engine":
            assert security["runAsNonRoot"] is True
            assert security["readOnlyRootFilesystem"] is True
            assert "readinessProbe" in container


@pytest.mark.parametrize(
    ("name", "drain_s"),
    [
        ("ingress", INGRESS_DRAIN_S),
        ("worker-cloud", WORKER_DRAIN_S),
        ("vllm", WORKER_DRAIN_S),
        ("ollama", WORKER_DRAIN_S),
    ],
)
def test_pods_are_given_time_to_drain(name: str, drain_s: float) -> None:
    """The grace period is longer than preStop and the drain together."""
    pod = workloads()[name]["spec"]["template"]["spec"]
    pre_stop = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= pre_stop + drain_s + SPARE_S


@pytest.mark.parametrize("name", ["vllm", "ollama"])
def test_an_engine_outlives_its_worker(name: str) -> None:
    """The engine is a native sidecar, which Kubernetes stops after the containers that use it."""
    pod = workloads()[name]["spec"]["template"]["spec"]
    (engine,) = pod["initContainers"]
    assert (engine["name"], engine["restartPolicy"]) == ("engine", "Always")
    assert [container["name"] for container in pod["containers"]] == ["worker"]


def test_selectors_find_what_they_mean() -> None:
    """Services, budgets and policies select pods that exist, and ports that those have."""
    pods = [item["spec"]["template"] for item in workloads().values()]
    for service in named("Service").values():
        chosen = [pod for pod in pods if selects(service["spec"]["selector"], pod["metadata"]["labels"])]
        assert len(chosen) == 1
        ports = {port["name"] for container in chosen[0]["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for budget in named("PodDisruptionBudget").values():
        wanted = budget["spec"]["selector"]["matchLabels"]
        assert sum(selects(wanted, pod["metadata"]["labels"]) for pod in pods) == 1
    for policy in named("NetworkPolicy").values():
        wanted = policy["spec"]["podSelector"].get("matchLabels", {})
        assert any(selects(wanted, pod["metadata"]["labels"]) for pod in pods)


def test_monitors_find_their_services() -> None:
    """Each ServiceMonitor selects services that have its port; all workers' and the ingress's are found."""
    found = set()
    for monitor in named("ServiceMonitor").values():
        wanted = monitor["spec"]["selector"]["matchLabels"]
        for name, service in named("Service").items():
            if selects(wanted, service["metadata"]["labels"]):
                found.add(name)
                ports = {port["name"] for port in service["spec"]["ports"]}
                assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    assert found == {"tierfall", "worker-cloud", "vllm", "ollama"}


def test_pods_listen_where_their_probes_ask(config: Config) -> None:
    """``--http`` of a worker and the ingress's port are the ports that the manifests name."""
    for name, workload in workloads().items():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            if container["name"] == "worker":
                assert container["args"][-2:] == ["--http", f"0.0.0.0:{ports['metrics']}"]
            elif name == "ingress":
                assert ports["http"] == config.server.port
    assert config.nats.nkey == "/run/tierfall/nkey"


def test_keys_go_where_they_are_used(config: Config) -> None:
    """Only the cloud worker sees providers' keys; the example Secret names all keys and holds none."""
    seen = {
        name: {entry["name"] for container in containers(item) for entry in container.get("env", ())}
        for name, item in workloads().items()
    }
    assert {
        tier.api_key.source for tier in config.tiers.values() if isinstance(tier, CloudTier)
    } == PROVIDER_KEYS
    assert seen["worker-cloud"] == PROVIDER_KEYS
    assert [name for name, keys in seen.items() if "TIERFALL_KEY" in keys] == ["ingress"]
    assert not any(keys & PROVIDER_KEYS for name, keys in seen.items() if name != "worker-cloud")
    example = read("k8s/secrets.example.yaml")
    check_schema(example)
    assert example["stringData"] == dict.fromkeys(["TIERFALL_KEY", *sorted(PROVIDER_KEYS)], "")


def test_each_service_has_its_own_nats_user() -> None:
    """The seed that a pod mounts is that of its user, and nobody else's."""
    users = {}
    for name, workload in workloads().items():
        volumes = workload["spec"]["template"]["spec"]["volumes"]
        users[name] = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
    assert users == {
        "ingress": ["nkey-ingress"],
        "worker-cloud": ["nkey-worker-cloud"],
        "vllm": ["nkey-worker-vllm"],
        "ollama": ["nkey-worker-ollama"],
        "nats": [],
    }
    assert {name.removeprefix("nkey-") for names in users.values() for name in names} <= set(
        nats_config.user_names(1)
    )


def test_the_config_knows_every_model_of_the_table(config: Config) -> None:
    """The names that clients of the proxy before it use are all there, and free plans are in no ladder."""
    assert config.ladder("vllm-qwen") == ("vllm-qwen", "ollama-qwen", "openai-gpt4o")
    assert config.ladder("ollama-qwen") == ("ollama-qwen", "openai-gpt4o")
    alone = [name for name in config.models if len(config.ladder(name)) == 1]
    assert alone == [
        "openai-gpt4o",
        "groq/llama-3.3-70b-versatile",
        "groq/mixtral-8x7b-32768",
        "gemini/gemini-2.0-flash",
        "gemini/gemini-2.5-flash",
        "mistral/mistral-small-latest",
    ]


@pytest.mark.parametrize("tier", ["vllm", "ollama"])
def test_a_tier_grows_before_its_slots_run_out(config: Config, tier: str) -> None:
    """KEDA's threshold is 80 % of a worker's slots, and it asks for that tier."""
    spec = named("ScaledObject")[tier]["spec"]
    (trigger,) = spec["triggers"]
    assert float(trigger["metadata"]["threshold"]) == pytest.approx(0.8 * config.tiers[tier].max_in_flight)
    assert trigger["metadata"]["query"].count(f'{{tier="{tier}"}}') == 2
    assert spec["scaleTargetRef"]["name"] in named("Deployment")
    assert "replicas" not in named("Deployment")[tier]["spec"], "KEDA's to say"


def test_engines_serve_as_many_as_are_sent(config: Config) -> None:
    """Ollama's parallel requests are its tier's slots: the rest would queue where nobody sees them."""
    env = next(containers(workloads()["ollama"]))["env"]
    (parallel,) = [entry["value"] for entry in env if entry["name"] == "OLLAMA_NUM_PARALLEL"]
    assert int(parallel) == config.tiers["ollama"].max_in_flight


@pytest.mark.parametrize("overlay", ["base", "overlays/home-lab"])
def test_nats_server_takes_its_config(tmp_path: Path, overlay: str) -> None:
    """nats-server itself reads the config, with the users that ``tierfall nats-config`` writes."""
    folder = nats_folder(tmp_path, overlay)
    checked = check_nats(folder, environ_of_nats(folder))
    assert checked.returncode == 0, checked.stderr


def test_a_cluster_without_a_password_does_not_start(tmp_path: Path) -> None:
    """Without the Secret ``nats-routes`` a server of the base does not start, and names the variable."""
    checked = check_nats(nats_folder(tmp_path, "base"), {"POD_NAME": "nats-0"})
    assert checked.returncode != 0
    assert "NATS_ROUTE_PASSWORD" in checked.stderr


def nats_folder(tmp_path: Path, overlay: str) -> Path:
    """What a pod of NATS has in /etc/nats."""
    nats_config.run(tmp_path, None, 1, io.StringIO())
    folder = tmp_path / "nats"
    for name in ("nats.conf", "tls.conf", "cluster-tls.conf"):
        source = K8S / overlay / name
        folder.joinpath(name).write_text((source if source.exists() else K8S / "base" / name).read_text())
    return folder


def environ_of_nats(folder: Path) -> dict[str, str]:
    """The variables of a pod of NATS, with the password that ``tierfall nats-config`` wrote."""
    (nats,) = containers(workloads()["nats"])
    environ = {"POD_NAME": "nats-0", "NATS_ROUTE_PASSWORD": (folder / "route-password").read_text()}
    for entry in nats["env"]:
        if "value" in entry:
            environ[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda found: environ[found[1]], entry["value"])
    return environ


def check_nats(folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What nats-server says of its config."""
    command = [str(Path(sys.executable).parent / "nats-server"), "-t", "-c", str(folder / "nats.conf")]
    return subprocess.run(  # noqa: S603 - our own nats-server
        command, env=environ, capture_output=True, text=True, check=False, timeout=10
    )


def test_nats_keeps_its_store_on_a_volume() -> None:
    """JetStream writes to the volume that each server has, as the user that it runs as."""
    nats = workloads()["nats"]["spec"]
    pod = nats["template"]["spec"]
    (claim,) = [entry["metadata"]["name"] for entry in nats["volumeClaimTemplates"]]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]
    for path in ("base", "overlays/home-lab"):
        assert f'store_dir: "{mounts[claim]}"' in (K8S / path / "nats.conf").read_text()


def test_nats_peers_are_the_stateful_set() -> None:
    """The routes name exactly the pods that the StatefulSet makes, each with the password."""
    nats = workloads()["nats"]["spec"]
    (server,) = containers(workloads()["nats"])
    routes = {entry["name"]: entry["value"] for entry in server["env"] if "value" in entry}
    assert routes == {
        f"NATS_ROUTE_{number}": f"nats-route://tierfall:$(NATS_ROUTE_PASSWORD)@nats-{number}.{nats['serviceName']}:6222"
        for number in range(nats["replicas"])
    }
    text = (K8S / "base" / "nats.conf").read_text()
    assert f"routes: [ {', '.join(f'${name}' for name in routes)} ]" in text


def test_nats_shows_its_connections_to_nobody_outside() -> None:
    """The monitoring port, which has no password, listens on loopback; the probes run in the pod."""
    (server,) = containers(workloads()["nats"])
    assert {port["name"] for port in server["ports"]} == {"client", "route"}
    for path in ("base", "overlays/home-lab"):
        (address,) = re.findall(r"^http\S*: (\S+)", (K8S / path / "nats.conf").read_text(), re.MULTILINE)
        assert address == "127.0.0.1:8222"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert f"http://{address}/healthz" in server[probe]["exec"]["command"][-1]
