"""The cloud worker's requests against a mock server of OpenAI's published schema.

Not in the suite: it needs npm and OpenAI's OpenAPI document (github.com/openai/openai-openapi). The suite has
a strict provider of its own, ``tests/fakes/strict.py``; this says whether that one is strict enough.

    npx --yes @stdy/cli openapi.yaml --port 8123 &
    .venv/bin/python bench/strict.py --url http://127.0.0.1:8123

Sends each value of each parameter in ``tests/fakes/parameters.py`` through the worker's backend for OpenAI,
prints what the server objected to, and exits with 1 if that was anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakes.parameters import RANGE, REQUIRED
from tierfall.config import CloudTier, Secret
from tierfall.errors import BackendDown, StreamBroken, TierfallError, UnsupportedByTier
from tierfall.protocol.operation import Operation
from tierfall.worker import Ask
from tierfall_worker_cloud import CloudBackend
from tierfall_worker_cloud.providers import provider_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODELS = {
    Operation.CHAT: "gpt-4o-mini",
    Operation.COMPLETIONS: "gpt-3.5-turbo-instruct",
    Operation.EMBEDDINGS: "text-embedding-3-small",
}


async def objection(backend: CloudBackend, operation: Operation, members: dict[str, Any]) -> str:
    """What came of one request: ``taken``, ``refused here``, or the server's words."""
    body = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in members.items()}
    ask = Ask(request_id="r", model="m", backend_model=MODELS[operation], body=body, operation=operation)
    run: AsyncIterator[object] = {
        Operation.CHAT: backend.chat,
        Operation.COMPLETIONS: backend.complete,
        Operation.EMBEDDINGS: backend.embed,
    }[operation](ask)
    try:
        async for _ in run:
            pass
    except UnsupportedByTier:
        return "refused here"
    except StreamBroken:
        return "taken"  # a made-up answer need not be a good one
    except BackendDown as error:
        sys.exit(error.message)
    except TierfallError as error:
        return error.message
    return "taken"


async def main(url: str) -> int:
    """The exit status."""
    tier = CloudTier(provider="openai", base_url=url, api_key=Secret("sk-strict"))
    backend = CloudBackend("openai", tier, provider_for("openai", tier))
    await backend.start()
    counts: Counter[str] = Counter()
    for operation, fields in RANGE.items():
        for field, values in fields.items():
            for value in values:
                said = await objection(backend, operation, {**REQUIRED[operation], field: value})
                counts[said if said in {"taken", "refused here"} else "objected to"] += 1
                if said not in {"taken", "refused here"}:
                    print(f"{operation.path} {field}={json.dumps(value)}: {said}")
    await backend.close()
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return 1 if counts["objected to"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True, help="the mock server's address")
    sys.exit(asyncio.run(main(parser.parse_args().url)))
