"""``tierfall nats-config``: which users there are, and what it says to a slip."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tierfall.cli.main import main
from tierfall.protocol import subjects

if TYPE_CHECKING:
    from pathlib import Path


def users(folder: Path, *options: str) -> set[str]:
    """Runs the command; the users that the server would know."""
    assert main(["nats-config", "--out", str(folder), *options]) == 0
    found = re.findall(r"^ +# (.+)$", (folder / "nats" / "users.conf").read_text(), re.MULTILINE)
    assert len(found) == len(set(found))
    return set(found)


def test_a_machine_stays_until_its_folder_goes(tmp_path: Path) -> None:
    """A machine's user outlives a run that does not name it, with its seed; without its folder it is gone."""
    shared = {"ingress", "worker-vllm", "worker-ollama", "worker-cloud", "admin"}
    assert users(tmp_path) == shared
    assert users(tmp_path, "--worker", "vllm@gpubox") == {*shared, "worker-vllm@gpubox"}
    seed = (tmp_path / "worker-vllm@gpubox" / "nkey").read_text()
    both = {"worker-cloud@nuc", "worker-vllm@gpubox"}
    assert users(tmp_path, "--worker", "cloud@nuc") == shared | both
    assert (tmp_path / "worker-vllm@gpubox" / "nkey").read_text() == seed
    (tmp_path / "worker-vllm@gpubox" / "nkey").unlink()
    assert users(tmp_path) == {*shared, "worker-cloud@nuc"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("gpubox", "--worker gpubox: write KIND@MACHINE, with a kind of vllm, ollama, cloud"),
        ("gpu@box", "--worker gpu@box: write KIND@MACHINE"),
        ("vllm@", "--worker vllm@: write KIND@MACHINE"),
        ("vllm@GPU_Box.lan", "its workers call that machine gpu-box-lan; write vllm@gpu-box-lan"),
    ],
)
def test_a_machine_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, says: str
) -> None:
    """A name that no worker would have is refused, with the one that is meant."""
    assert main(["nats-config", "--out", str(tmp_path), "--worker", given]) != 0
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_each_user_is_in_one_account(tmp_path: Path) -> None:
    """Those who ask JetStream and may not write all of it are apart; no export stands twice."""
    users(tmp_path, "--worker", "cloud@nuc", "--worker", "vllm@gpubox")
    inside, _, apart = (tmp_path / "nats" / "users.conf").read_text().partition("  TIERFALL_CLOUD {")
    assert re.findall(r"# (worker-cloud.*)", inside) == []
    assert re.findall(r"# (\S+)", apart) == ["worker-cloud", "worker-cloud@nuc"]
    for listed in (re.findall(r"{ (?:stream|service): (\S+),", inside), re.findall(r"subject: (\S+)", apart)):
        assert len(listed) == len(set(listed)) > 8
        assert not [subject for subject in listed if "nuc" in subject], "a message would come twice"


@pytest.mark.parametrize(
    ("worker", "subject"),
    [
        ("vllm-gpubox-1a2b", "vllm.gpubox.vllm-gpubox-1a2b"),
        ("cloud-my-nuc-2-3c4d", "cloud.my-nuc-2.cloud-my-nuc-2-3c4d"),
        ("vllm-first", "vllm.first.vllm-first"),
        ("lone", "lone.lone.lone"),
    ],
)
def test_a_control_subject_names_kind_and_machine(worker: str, subject: str) -> None:
    """Permissions by token can tell kinds and machines apart, whatever a worker is called."""
    assert subjects.control(worker) == f"tierfall.v1.ctl.{subject}"
    kind, machine, _ = subject.split(".")
    assert subjects.control_of(kind, machine) == f"tierfall.v1.ctl.{kind}.{machine}.*"
