"""Every image that a file names is an exact one, and deploy/images.lock keeps it so."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from deploy.checks import images
from fakes.manifests import ROOT, containers, read, workloads
from fakes.registry import FakeRegistry
from tierfall.engines import OLLAMA, VLLM, advice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HUB = ("library/nats", "library/python")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of every file that names images, to be changed."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for reference in images.references(ROOT):
        (tmp_path / reference.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / reference.path, tmp_path / reference.path)
    (tmp_path / images.LOCK).parent.mkdir()
    shutil.copy(ROOT / images.LOCK, tmp_path / images.LOCK)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    """Changes a file's text, where it is."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def hub_names(root: Path) -> dict[str, str]:
    """What the registry calls each listed image, by repository."""
    return {
        name: f"{name if '/' in name else f'library/{name}'}:{image.tag}"
        for name, image in images.read_lock(root).items()
    }


def test_every_image_is_exact_and_listed() -> None:
    """A full version and a digest, the same in every file."""
    assert images.problems(ROOT) == []
    assert [image for image in images.read_lock(ROOT).values() if not image.digest] == []


def test_the_pinned_engines_have_nothing_against_them() -> None:
    """What the worker would warn of is not what compose and Kubernetes start."""
    listed = images.read_lock(ROOT)
    assert advice(f"{OLLAMA} {listed['ollama/ollama'].tag}") == ""
    assert advice(f"{VLLM} {listed['vllm/vllm-openai'].tag}") == ""


def test_no_reference_is_overlooked() -> None:
    """What YAML's own reader finds is found by the check, and what is built here is no other project's."""
    found = {reference.text for reference in images.references(ROOT)}
    named: list[Any] = [service["image"] for service in read("compose.yaml")["services"].values()]
    named += [container["image"] for workload in workloads().values() for container in containers(workload)]
    assert {name for name in named if not name.startswith("tierfall/")} <= found
    for dockerfile in (ROOT / "services").glob("*/Dockerfile"):
        bases = re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
        assert bases == ["${PYTHON_IMAGE}"] * 2
        assert (
            sum(reference.path == dockerfile.relative_to(ROOT) for reference in images.references(ROOT)) == 1
        )


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        (
            "compose.yaml",
            lambda text: re.sub(r"nats:2\S+", "nats:2.15-alpine", text),
            "names nats:2.15-alpine",
        ),
        ("compose.yaml", lambda text: re.sub(r"nats:2\S+", "nats", text), "'nats' is not repository:tag"),
        ("compose.yaml", lambda text: re.sub("(nats:2.*sha256:)....", r"\g<1>0000", text), "names nats:2"),
        (
            "k8s/base/nats.yaml",
            lambda text: text.replace("nats:2", "redis:2"),
            "is not in deploy/images.lock",
        ),
        ("services/ingress/Dockerfile", lambda text: text.replace("@sha256", "x@sha256"), "names python:3"),
        (
            "deploy/images.lock",
            lambda text: re.sub("^nats:.*", "nats:latest", text, flags=re.MULTILINE),
            "full version",
        ),
        ("deploy/images.lock", lambda text: text + "redis:8.2.1\n", "no file uses redis"),
    ],
)
def test_a_difference_is_named(tree: Path, path: str, change: Callable[[str], str], said: str) -> None:
    """A floating tag, another digest, an image that is not listed, an entry that is not used."""
    (tree / path).write_text(change((tree / path).read_text()))
    assert said in "\n".join(images.problems(tree))
    assert images.main(["--root", str(tree)]) == 1


def test_pinning_takes_the_registrys_digests(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed tag in the list is all that a new version needs: the digests and the files follow."""
    replace(tree / images.LOCK, "nats:2.15.0-alpine", "nats:9.0.1-alpine")
    names = hub_names(tree)
    with FakeRegistry(*names.values()) as registry:
        assert images.main(["--pin", "--registry", registry.url, "--root", str(tree)]) == 0
    pinned = f"nats:9.0.1-alpine@{registry.digest('library/nats:9.0.1-alpine')}"
    assert f"-> {pinned}" in capsys.readouterr().out
    for path in ("compose.yaml", "k8s/base/nats.yaml", str(images.LOCK)):
        assert (tree / path).read_text().count(pinned) == 1
    for name, image in images.read_lock(tree).items():
        assert image.digest == registry.digest(names[name])
    assert images.problems(tree) == []
    assert (tree / images.LOCK).read_text().startswith("# Every image")


def test_nothing_is_written_without_a_whole_answer(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tag that does not exist, a registry that contradicts itself, or none at all: no file changes."""
    before = {path: path.read_text() for path in tree.rglob("*") if path.is_file()}
    names = hub_names(tree)
    with FakeRegistry(*names.values()) as registry:
        command = ["--pin", "--registry", registry.url, "--root", str(tree)]
        registry.images.remove(names["python"])
        assert images.main(command) == 1
        assert f"{names['python']}: {registry.url} answers 404: check the tag" in capsys.readouterr().err
        registry.images.add(names["python"])
        registry.lies = True
        assert images.main(command) == 1
        assert "but its manifest is sha256:" in capsys.readouterr().err
    assert images.main(command) == 1
    assert "gives no manifest" in capsys.readouterr().err
    assert {path: path.read_text() for path in tree.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda lock: lock.name)
def test_every_locked_package_has_its_hash(lock: Path) -> None:
    """One version each, and no file of it that was not there when it was locked."""
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^ *#.*\n?", "", lock.read_text()).strip())
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ;]+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry
