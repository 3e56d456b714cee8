"""What a provider's quota costs a request, as a Markdown table: ``python -m bench.quota``.

One ingress, one worker-cloud, a nats-server with JetStream, the bench's own backend and load generator, each
a process. The same requests go to a model without a quota, to one whose requests are counted, and to one with
counted tokens too, in turn, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from bench import processes
from bench.backend import AT_ONCE
from bench.load import Load, UnaryReport
from fakes.processes import Fleet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fakes.processes import Ingress

ROOT: Final = Path(__file__).parent.parent
MODELS: Final = {
    "free": "no quota",
    "requests": "requests counted",
    "tokens": "requests and tokens counted",
}
CONFIG: Final = f"""
tiers:
  sky: {{worker: cloud, provider: mine, base_url: 'URL', api_key: sk-1, max_in_flight: 400}}
  sea: {{worker: cloud, provider: mine, base_url: 'URL', api_key: sk-2, max_in_flight: 400}}
  bare: {{worker: cloud, provider: mine, base_url: 'URL', api_key: sk-3, max_in_flight: 400}}
models:
  free: {{tier: bare, backend_model: {AT_ONCE}}}
  requests: {{tier: sky, backend_model: {AT_ONCE}, quota: {{requests: [9000000/d, 9000000/m]}}}}
  tokens: {{tier: sea, backend_model: {AT_ONCE}, quota: {{requests: [9000000/d], tokens: [900000000/d]}}}}
"""
SIZES: Final = (1, 32)
SECONDS: Final = 3.0
"""Of each model and number of connections, in each round."""
ROUNDS: Final = 3
START_S: Final = 15.0
HEAD: Final = """
| connections | model | p50 ms | p99 ms | a second | CPU µs each (ingress + worker + NATS) |
| ---: | --- | ---: | ---: | ---: | ---: |
"""


class Round(NamedTuple):
    """What one model cost in one round."""

    report: UnaryReport
    cpu_us: Mapping[str, float]
    """Of one request, by process."""


async def main() -> None:
    """Prints the table."""
    port = processes.free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "bench.backend", str(port)]
        with processes.running("backend", command, folder, {"PYTHONPATH": str(ROOT)}) as backend:
            processes.wait_for_port(backend, port, START_S)
            config = CONFIG.replace("URL", f"http://127.0.0.1:{port}/v1")
            async with Fleet(folder, config) as fleet:
                ingress, worker = await fleet.ingress(), await fleet.worker(kind="cloud")
                for tier in ("sky", "sea", "bare"):
                    await fleet.know(ingress, tier, worker)
                found = await asyncio.to_thread(_measure, ingress, _cpu_of(fleet))
    sys.stdout.write(HEAD)
    for (size, model), rounds in found.items():
        sys.stdout.write(f"| {size} | {MODELS[model]} | {_line(rounds)} |\n")


def _measure(ingress: Ingress, cpu: Mapping[str, processes.Process]) -> dict[tuple[int, str], list[Round]]:
    found: dict[tuple[int, str], list[Round]] = {}
    for size in SIZES:
        for model in MODELS:
            _load(ingress, model, size, 1.0)
        for _ in range(ROUNDS):
            for model in MODELS:
                before = {name: process.used().cpu_s for name, process in cpu.items()}
                report = _load(ingress, model, size, SECONDS)
                spent = {name: process.used().cpu_s - before[name] for name, process in cpu.items()}
                each = {name: 1e6 * seconds / report.requests for name, seconds in spent.items()}
                found.setdefault((size, model), []).append(Round(report, each))
    return found


def _load(ingress: Ingress, model: str, size: int, seconds: float) -> UnaryReport:
    load = Load(kind="unary", ports=(ingress.port,), size=size, seconds=seconds, model=model)
    ran = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=msgspec.json.encode(load),
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    report = msgspec.json.decode(ran.stdout, type=UnaryReport)
    if report.failures:
        raise SystemExit(f"{model}: {'; '.join(report.failures[:3])}")
    return report


def _cpu_of(fleet: Fleet) -> dict[str, processes.Process]:
    ingress, worker = fleet.processes
    nats = fleet.nats._process  # noqa: SLF001 - the fake does not tell its pid
    assert nats is not None  # noqa: S101 - it runs
    found = {"ingress": ingress._popen, "worker": worker._popen, "nats": nats}  # noqa: SLF001 - likewise
    return {name: processes.Process(name, popen, Path()) for name, popen in found.items()}


def _line(rounds: Sequence[Round]) -> str:
    p50, p99, per_s = (
        statistics.median(getattr(each.report, name) for each in rounds)
        for name in ("p50_ms", "p99_ms", "per_s")
    )
    cpu = [statistics.median(each.cpu_us[name] for each in rounds) for name in ("ingress", "worker", "nats")]
    split = " + ".join(f"{us:.0f}" for us in cpu)
    return f"{p50:.2f} | {p99:.2f} | {per_s:,.0f} | {sum(cpu):.0f} ({split})"


if __name__ == "__main__":
    asyncio.run(main())
