"""The Kubernetes manifests, the compose file and the Dockerfiles as data."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
K8S: Final = ROOT / "k8s"
OVERLAYS: Final = ("base", "overlays/home-lab", "overlays/scaled")
BUILD_TIMEOUT_S: Final = 30.0

Manifest = dict[str, Any]


def read(path: str) -> Any:
    """One YAML document of the repository."""
    return yaml.safe_load((ROOT / path).read_text())


def resource_files() -> list[Path]:
    """Every file that a kustomization names as a resource."""
    found = []
    for kustomization in sorted(K8S.rglob("kustomization.yaml")):
        for name in yaml.safe_load(kustomization.read_text()).get("resources", ()):
            path = (kustomization.parent / name).resolve()
            if path.is_file():
                found.append(path)
    return found


def manifests() -> list[Manifest]:
    """Every resource, as it is written."""
    return [document for path in resource_files() for document in yaml.safe_load_all(path.read_text())]


def named(kind: str) -> dict[str, Manifest]:
    """The resources of one kind, by name."""
    return {item["metadata"]["name"]: item for item in manifests() if item["kind"] == kind}


def workloads() -> dict[str, Manifest]:
    """What makes pods, by name."""
    return named("Deployment") | named("StatefulSet")


def containers(workload: Manifest) -> Iterator[Manifest]:
    """All containers of a workload's pods, engines beside workers too."""
    pod = workload["spec"]["template"]["spec"]
    yield from (*pod.get("initContainers", ()), *pod["containers"])


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether a selector's labels are all there."""
    return selector.items() <= labels.items()


def kustomize() -> list[str] | None:
    """The command that builds a kustomization, if this machine has one."""
    if command := shutil.which("kustomize"):
        return [command, "build"]
    if command := shutil.which("kubectl"):
        return [command, "kustomize"]
    return None


def build(command: list[str], folder: Path) -> list[Manifest]:
    """What a kustomization comes to.

    Raises:
        AssertionError: The build fails or warns; the message is its own.
    """
    built = subprocess.run(  # noqa: S603 - kustomize, with a folder of ours
        [*command, str(folder)], capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S
    )
    assert (built.returncode, built.stderr) == (0, "")
    return list(yaml.safe_load_all(built.stdout))
