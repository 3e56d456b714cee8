"""``tierfall-worker-ollama``: the process."""

from __future__ import annotations

from tierfall.worker import run_worker
from tierfall_worker_ollama.backend import OllamaBackend


def main() -> None:
    """Serves every tier of kind ``ollama`` in the config, or those given with ``--tier``, until SIGTERM."""
    run_worker(kind="ollama", build=OllamaBackend.from_tier)


if __name__ == "__main__":
    main()
