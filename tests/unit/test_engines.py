"""What is said of an engine's version."""

from __future__ import annotations

import pytest

from tierfall.engines import FLAWS, OLLAMA_CUTS, advice, engine_of


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            "Ollama 0.12.3",
            (
                "cuts long prompts without an error (it does not know `truncate: false`), and has published "
                "security advisories (CVE-2026-7482): update it to 0.17.1 or newer"
            ),
        ),
        (
            "Ollama 0.12.6",
            "has published security advisories (CVE-2026-7482): update it to 0.17.1 or newer",
        ),
        (
            "vLLM 0.11.0",
            (
                "has published security advisories (CVE-2026-22778, CVE-2026-27893, CVE-2026-48746, "
                "CVE-2026-105757, CVE-2026-114053): update it to 0.31.0 or newer"
            ),
        ),
        (
            "vLLM 0.2.0",
            "has published security advisories (CVE-2026-105757): update it to 0.30.0 or newer",
        ),
    ],
)
def test_an_old_version_is_told_what_it_lacks(engine: str, said: str) -> None:
    """With everything that concerns it, and the version that mends all of it."""
    assert advice(engine) == f"{engine} {said}"


@pytest.mark.parametrize(
    "engine",
    [
        "Ollama 0.17.1",
        "Ollama 0.40.2",
        "Ollama 1.0.0",
        "vLLM 0.31.0",
        "vLLM 0.31.0+cu129",
        "vLLM 0.31.0.post1",
        "llama.cpp b11549-abcdef",
        "Ollama 0.0.0",  # a build from source
        "vLLM 0.1.dev1+gabcdef",  # likewise, of a clone without tags
        "vLLM unknown",
        "Other 0.1.0",
        "0.12.3",
        f"Ollama {'9' * 5000}.1",  # a heartbeat may say anything
        "Ollama 0.\u0661",
        "",
    ],
)
def test_nothing_is_said_of_a_good_or_unknown_version(engine: str) -> None:
    """Silence is no praise: the version may only be unknown."""
    assert advice(engine) == ""


@pytest.mark.parametrize("version", ["0.12.6-rc1", "0.12.6rc0", "v0.12.5", "0.12.6.dev4+g12", "0.12"])
def test_what_comes_before_a_release_lacks_what_it_brings(version: str) -> None:
    """A release candidate of the version that mends something may not have it yet."""
    assert OLLAMA_CUTS.concerns(f"Ollama {version}")


def test_a_version_is_bounded() -> None:
    """It comes from an engine, and goes into logs and to the ingress."""
    assert engine_of("Ollama", "0.12.3") == "Ollama 0.12.3"
    for version in ("", "0.1\nERROR", "1" * 65, 7, None, ["0.1.0"], "ü"):
        assert engine_of("Ollama", version) == ""


def test_the_table_is_sound() -> None:
    """A flaw is an advisory or a lack, its bounds are in order, and the table has each advisory once."""
    advisories = [flaw.advisory for flaw in FLAWS if flaw.advisory]
    assert len(set(advisories)) == len(advisories)
    assert all(flaw.since < flaw.fixed and bool(flaw.advisory) != bool(flaw.lack) for flaw in FLAWS)
