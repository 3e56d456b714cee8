"""The images that are not built here: deploy/images.lock lists them, and every file names them as it does.

    .venv/bin/python -m deploy.checks.images [--pin]

Alone, it says which references differ from the list. With ``--pin`` it asks the registry for the digest of
each listed tag first, and writes it into the list and into the files.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from deploy.checks.registry import DOCKER_HUB, Registry, RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = Path("deploy") / "images.lock"
OURS: Final = "tierfall/"
"""Built here, so there is no digest to know beforehand."""
STAGES: Final = ("build",)
"""What a ``FROM`` names that is no image: an earlier stage."""
_IMAGE: Final = re.compile(
    r"(?P<repository>[a-z0-9][a-z0-9._/-]*):(?P<tag>[\w.-]+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?", re.ASCII
)
FULL_VERSION: Final = re.compile(r"v?\d+\.\d+\.\d+(?:-[a-z0-9.]+)*", re.ASCII)
"""Down to the patch: ``2.15-alpine`` and ``latest`` are other images tomorrow."""
_REFERENCES: Final = (
    re.compile(r"(?<![\w.-])image: *([^\s#,}]+)"),
    re.compile(r"^ARG PYTHON_IMAGE=(\S+)", re.MULTILINE),
    re.compile(r"^FROM ([^\s$]+)", re.MULTILINE),
)
_SUMMARY: Final = "Compares the images that files name with deploy/images.lock, or renews both."


class Image(NamedTuple):
    """One image; its digest is empty where none is known."""

    repository: str
    tag: str
    digest: str = ""

    def __str__(self) -> str:
        tagged = f"{self.repository}:{self.tag}"
        return f"{tagged}@{self.digest}" if self.digest else tagged


class Reference(NamedTuple):
    """Where a file names an image."""

    path: Path
    line: int
    text: str


def parse(text: str) -> Image:
    """An image of a reference's text.

    Raises:
        ValueError: It has no tag, or is no reference.
    """
    found = _IMAGE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not repository:tag or repository:tag@sha256:...")
    return Image(found["repository"], found["tag"], found["digest"] or "")


def read_lock(root: Path) -> dict[str, Image]:
    """The listed images by repository.

    Raises:
        ValueError: A line is no image, or a repository stands twice.
    """
    listed: dict[str, Image] = {}
    for line in (root / LOCK).read_text().splitlines():
        if line and not line.startswith("#"):
            image = parse(line)
            if image.repository in listed:
                raise ValueError(f"{LOCK} lists {image.repository} twice")
            listed[image.repository] = image
    return listed


def references(root: Path) -> Iterator[Reference]:
    """Every image that a compose file, a manifest or a Dockerfile names and that is not built here."""
    dockerfiles = (root / "services").glob("*/Dockerfile")
    for path in sorted([root / "compose.yaml", *(root / "k8s").rglob("*.yaml"), *dockerfiles]):
        text = path.read_text()
        for pattern in _REFERENCES:
            for found in pattern.finditer(text):
                if not found[1].startswith(OURS) and found[1] not in STAGES:
                    line = text.count("\n", 0, found.start(1)) + 1
                    yield Reference(path.relative_to(root), line, found[1])


def problems(root: Path) -> list[str]:
    """What has to be changed, one line each."""
    listed = read_lock(root)
    found = [
        f"{LOCK}: {image} has no full version, so it is another image tomorrow"
        for image in listed.values()
        if not FULL_VERSION.fullmatch(image.tag)
    ]
    used = set()
    for reference in references(root):
        where = f"{reference.path}:{reference.line}"
        try:
            image = parse(reference.text)
        except ValueError as error:
            found.append(f"{where}: {error}")
            continue
        used.add(image.repository)
        if image.repository not in listed:
            found.append(f"{where}: {image} is not in {LOCK}")
        elif image != listed[image.repository]:
            found.append(f"{where}: names {image}, where {LOCK} has {listed[image.repository]}")
    found += [f"{LOCK}: no file uses {name}" for name in listed if name not in used]
    return found


def write(root: Path, images: dict[str, Image]) -> None:
    """Puts the images into the list and into every file that names one of their repositories."""
    lines = [
        line if not line or line.startswith("#") else str(images[parse(line).repository])
        for line in (root / LOCK).read_text().splitlines()
    ]
    texts = {LOCK: "\n".join(lines) + "\n"}
    for path in {reference.path for reference in references(root)}:
        text = (root / path).read_text()
        for pattern in _REFERENCES:
            text = pattern.sub(lambda found: _replaced(found, images), text)
        texts[path] = text
    for path, text in texts.items():
        (root / path).write_text(text)


def _replaced(found: re.Match[str], images: dict[str, Image]) -> str:
    image = images.get(found[1].partition("@")[0].partition(":")[0])
    return found[0] if image is None else found[0].replace(found[1], str(image))


def pin(root: Path, registry: Registry) -> list[str]:
    """Asks for the digest of each listed tag and writes it everywhere.

    Returns:
        What has changed, one line each.

    Raises:
        RegistryError: One of them cannot be had; nothing is written.
    """
    listed = read_lock(root)
    images = {
        name: image._replace(digest=registry.digest(_in_registry(name), image.tag))
        for name, image in listed.items()
    }
    write(root, images)
    return [f"{listed[name]} -> {image}" for name, image in images.items() if image != listed[name]]


def _in_registry(repository: str) -> str:
    """Docker Hub has ``nats`` and ``python`` in ``library/``, which their short names leave out."""
    return repository if "/" in repository else f"library/{repository}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the two; the exit status is 0 when everything fits."""
    parser = argparse.ArgumentParser(prog="python -m deploy.checks.images", description=_SUMMARY)
    parser.add_argument("--pin", action="store_true", help="ask the registry, and write what it says")
    parser.add_argument("--registry", default=DOCKER_HUB, help="a mirror's address (%(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.pin:
        try:
            changes = pin(options.root, Registry(options.registry))
        except RegistryError as error:
            print(error, file=sys.stderr)
            return 1
        print("\n".join(changes) or "every digest is what it was")
    found = problems(options.root)
    print("\n".join(found) or f"every file names the images of {LOCK}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
