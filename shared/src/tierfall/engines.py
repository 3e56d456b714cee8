"""What is known of engines' versions: which of them lack something, or have published security advisories.

An engine is written with its name and its version, ``Ollama 0.12.3``. Sources: the engines' release notes and
security advisories as of 2026-10.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

Version = tuple[int, int, int, int]
"""Major, minor, patch, and -1 for what comes before that release, else 0."""

OLLAMA: Final = "Ollama"
VLLM: Final = "vLLM"
LLAMA_CPP: Final = "llama.cpp"
_WRITTEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_VERSION: Final = re.compile(r"v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(.*)", re.ASCII)
_BEFORE: Final = re.compile(r"[.-]?(?:a|b|rc|alpha|beta|dev|pre)\.?\d*", re.IGNORECASE)
_UNKNOWN: Final = (0, 1)
"""Builds from source that know no version call themselves 0.0.0 or 0.1.dev1."""


class Flaw(NamedTuple):
    """Something that versions of an engine before ``fixed`` have against them.

    Attributes:
        engine: The engine's name.
        fixed: The first version without it.
        advisory: The published advisory's identifier; empty for what is none.
        lack: What such a version does, as the end of a sentence; empty for an advisory.
        since: The first version with it.
    """

    engine: str
    fixed: tuple[int, int, int]
    advisory: str = ""
    lack: str = ""
    since: tuple[int, int, int] = (0, 0, 0)

    def concerns(self, engine: str) -> bool:
        """Whether this engine has it; of an unknown version nothing is said."""
        name, version = _split(engine)
        return version is not None and name == self.engine and (*self.since, -1) <= version < (*self.fixed, 0)


OLLAMA_CUTS: Final = Flaw(
    OLLAMA, (0, 12, 6), lack="cuts long prompts without an error (it does not know `truncate: false`)"
)
FLAWS: Final = (
    OLLAMA_CUTS,
    Flaw(OLLAMA, (0, 17, 1), "CVE-2026-7482"),
    Flaw(VLLM, (0, 14, 1), "CVE-2026-22778", since=(0, 8, 3)),
    Flaw(VLLM, (0, 18, 0), "CVE-2026-27893", since=(0, 10, 1)),
    Flaw(VLLM, (0, 22, 0), "CVE-2026-48746", since=(0, 3, 0)),
    Flaw(VLLM, (0, 30, 0), "CVE-2026-105757"),
    Flaw(VLLM, (0, 31, 0), "CVE-2026-114053", since=(0, 7, 3)),
)


def engine_of(name: str, version: object) -> str:
    """An engine as it is written here; empty where the version, which an engine sent, is no version."""
    return f"{name} {version}" if isinstance(version, str) and _WRITTEN.fullmatch(version) else ""


def advice(engine: str) -> str:
    """What its operator should know, with the version to update to; empty when there is nothing to say."""
    found = [flaw for flaw in FLAWS if flaw.concerns(engine)]
    if not found:
        return ""
    said = [flaw.lack for flaw in found if flaw.lack]
    if advisories := ", ".join(flaw.advisory for flaw in found if flaw.advisory):
        said.append(f"has published security advisories ({advisories})")
    fixed = ".".join(map(str, max(flaw.fixed for flaw in found)))
    return f"{engine} {', and '.join(said)}: update it to {fixed} or newer"


def _split(engine: str) -> tuple[str, Version | None]:
    name, _, written = engine.rpartition(" ")
    found = _VERSION.fullmatch(written)
    if found is None:
        return name, None
    major, minor, patch = (int(number or 0) for number in found.group(1, 2, 3))
    before = _BEFORE.match(found[4]) is not None
    if (major, minor) < _UNKNOWN or ((major, minor) == _UNKNOWN and "dev" in found[4]):
        return name, None
    return name, (major, minor, patch, -1 if before else 0)
