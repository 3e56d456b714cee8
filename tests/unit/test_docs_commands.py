"""The commands that the documents tell people to type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from fakes.manifests import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[str]:
    """The lines of its code blocks, those that go on after a backslash joined."""
    blocks = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_curl_sends_is_called_json(document: Path) -> None:
    """By itself curl calls what it sends a form, and the gateway takes no forms."""
    sends = [line for line in commands(document) if "curl" in line and re.search(r" -d\b| --data", line)]
    assert [line for line in sends if "Content-Type: application/json" not in line] == []


def test_there_are_commands_to_look_at() -> None:
    """The test above sees the commands that are there."""
    seen = [line for document in DOCUMENTS for line in commands(document) if "/v1/chat/completions" in line]
    assert len(seen) > 5
