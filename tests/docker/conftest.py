"""The service images and NATS in containers; skipped, with the reason, where that cannot be."""

from __future__ import annotations

import gc
import importlib
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fakes.fleet import JAEGER, NATS, SERVICES, Fleet, write_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """The engine's client, if one answers and has the images."""
    # Not `docker` itself: without the package, this folder would be taken for it.
    missing = "testcontainers is not installed; make test-docker does it"
    pytest.importorskip("docker.errors", reason=missing)
    docker = importlib.import_module("docker")
    client, reason = _connected(docker)
    if client is None:
        pytest.skip(f"no container engine answers: {reason}")
    have = {tag for image in client.images.list() for tag in image.tags}
    if absent := [name for name in SERVICES if f"tierfall/{name}:latest" not in have]:
        pytest.skip(f"no image of {', '.join(absent)}; `make images` builds them")
    usable(client, NATS)
    yield client
    client.close()


def usable(client: Any, image: str) -> str:
    """An image of compose.yaml, pulled if it is not there; skips where it cannot be had.

    Returns:
        Its name. Without its digest where no registry answers and the engine has an image of that tag: one
        that was built or loaded here has no digest.
    """
    docker = importlib.import_module("docker")
    tagged = image.partition("@")[0]
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        try:
            client.images.pull(image)
        except docker.errors.APIError as error:
            try:
                client.images.get(tagged)
            except docker.errors.ImageNotFound:
                pytest.skip(f"{image} cannot be had: {error.explanation}")
            return tagged
    return image


def _connected(docker: Any) -> tuple[Any, str]:
    """A client, or why there is none."""
    reason = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return docker.from_env(), ""
        except docker.errors.DockerException as error:
            reason = str(error)
        gc.collect()  # a client that finds nobody leaves its socket open
    return None, reason


@pytest.fixture
def fleet(docker_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """NATS under permissions and an engine; a test starts what it needs of the rest."""
    from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - not in the dev lock
    from testcontainers.core.network import Network  # noqa: PLC0415 - likewise

    testcontainers_config.ryuk_disabled = True  # what is started here is ended here
    folder = tmp_path_factory.mktemp("fleet")
    write_folder(folder, Path(__file__).with_name("engine.py"))
    with ExitStack() as stack:
        made = Fleet(folder, stack.enter_context(Network()), stack)
        made.nats(usable(docker_client, NATS))
        made.engine()
        yield made


@pytest.fixture
def jaeger(docker_client: Any, fleet: Fleet) -> Any:
    """Jaeger beside the fleet, to which services that start later send their traces."""
    return fleet.jaeger(usable(docker_client, JAEGER))
