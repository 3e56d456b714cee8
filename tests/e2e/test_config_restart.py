"""A changed config of processes that run alone: what only a restart takes over is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fakes.polling import until

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.processes import NewFleet

CONFIG = """
tiers:
  near: {worker: vllm, base_url: 'http://127.0.0.1:1/v1'}
models:
  model: {tier: near, backend_model: fake-model}
"""
WORDS = "nats has changed in the config: that takes effect at the next start"


def replace(folder: Path, old: str, new: str) -> None:
    """Changes every process's config."""
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace(old, new))


async def test_a_changed_nats_section_asks_for_a_restart(new_fleet: NewFleet, tmp_path: Path) -> None:
    """The connection stays as it was, without TLS for example, so `applied` alone would mislead."""
    fleet = await new_fleet(CONFIG)
    processes = [fleet.start_ingress(), fleet.start_worker()]
    for process in processes:
        await process.came_up()
    replace(tmp_path, "  model: {", "  other: {")
    await until(lambda: all("config changed: applied" in process.log for process in processes))
    assert not any(WORDS in process.log for process in processes)
    replace(tmp_path, "nats: {", "nats: {tls: {}, ")
    await until(lambda: all(WORDS in process.log for process in processes))
