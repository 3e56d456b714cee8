"""``tierfall doctor``: one check after the other, and a verdict."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.cli.doctor import config as config_check
from tierfall.cli.doctor import models, nats, quotas, report, store, tiers
from tierfall.cli.doctor.finding import Finding, Level
from tierfall.cli.doctor.ingress import Ingress
from tierfall.cli.doctor.presence import listen
from tierfall.cli.doctor.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import TextIO

    from tierfall.bus import Bus
    from tierfall.config import Config
    from tierfall.protocol.presence import Beat

MODEL: Final = "model "
TIER: Final = "tier "

DEAF: Final = Finding(
    Level.WARN,
    "nats",
    "this user may not hear the workers, so only the ingress can tell of them",
    "set nats.nkey to the admin's, which `tierfall nats-config` wrote",
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks for.

    Attributes:
        config: The config file.
        url: The ingress's address; that of the config when empty.
        key: A client key; the config's first when empty.
        trial: Whether to send a request to each live tier.
        json: Whether the report is JSON.
    """

    config: Path
    url: str = ""
    key: str = ""
    trial: bool = True
    json: bool = False


def run(request: Request, environ: Mapping[str, str], out: TextIO) -> int:
    """Examines a running system and prints what it found.

    Args:
        request: What to look at.
        environ: Where secrets are looked up.
        out: Where the report goes.

    Returns:
        The exit status: 0 when every model can be answered and the ingress lets us ask, else 1.
    """
    logging.getLogger("tierfall").addHandler(logging.NullHandler())  # the findings say it
    findings = asyncio.run(examine(request, environ))
    well = all(finding.level is not Level.FAIL for finding in findings)
    verdict = _verdict(findings)
    if request.json:
        report.as_json(findings, verdict, out, well=well)
    else:
        report.as_text(findings, verdict, out, environ)
    return 0 if well else 1


async def examine(request: Request, environ: Mapping[str, str]) -> list[Finding]:
    """Every check; its findings, in order."""
    config, findings = config_check.examine(request.config, environ)
    if config is None:
        return findings
    bus, found = await nats.examine(config, request.config)
    findings += found
    async with nats.closing(bus):
        findings += await _examine_tiers(config, bus, request)
    return findings


def _verdict(findings: Sequence[Finding]) -> str:
    failed = list(dict.fromkeys(one.subject for one in findings if one.level is Level.FAIL))
    unanswered = [subject.removeprefix(MODEL) for subject in failed if subject.startswith(MODEL)]
    others = [subject for subject in failed if not subject.startswith((MODEL, TIER))]
    said = [f"Nobody can answer: {', '.join(unanswered)}."] if unanswered else []
    said += [f"To be mended first: {', '.join(others)}."] if others else []
    return " ".join(said) or "Every model can be answered."


async def _examine_tiers(config: Config, bus: Bus | None, request: Request) -> list[Finding]:
    findings: list[Finding] = []
    beats: dict[str, list[Beat]] = {}
    if bus is not None:
        findings.append(await nats.clock(bus))
        findings += await store.examine(config, request.config, bus)
        refused = bus.counters.permission_violations
        beats = await listen(bus)
        if bus.counters.permission_violations > refused and not beats:
            findings.append(DEAF)
            bus = None  # the ingress may still tell
        else:
            findings += tiers.examine(config, beats, request.config)
            findings += await quotas.examine(config, bus, request.config)
    ingress = Ingress(config, request.config, url=request.url, key=request.key)
    findings += await ingress.examine(beats)
    if bus is None and not ingress.usable:
        text = "nothing can be said of them: neither NATS nor the ingress lets us in"
        return [*findings, Finding(Level.FAIL, "models", text)]
    usable = tiers.live(beats) if bus is not None else ingress.live
    if request.trial:
        trials = await Trial(config, bus, ingress).run(usable)
        usable -= {tier for tier, trial in trials.items() if trial.level is not Level.OK}
        findings += trials.values()
    findings += models.examine(config, usable)
    return findings
