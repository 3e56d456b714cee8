"""Every NATS subject of Tierfall, in one place, so that permissions can be written from it.

Tier names are checked against :data:`TIER_NAME` when the config is read, so they are safe subject tokens.
"""

from __future__ import annotations

import functools
import re
from typing import Final

PREFIX: Final = "tierfall.v1"
QUEUE_GROUP: Final = "workers"
"""The queue group that all workers of a tier share: NATS gives each request to one of them."""
TIER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
WORKER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""What a worker may call itself: a safe subject token, and safe in a header."""

ANSWER: Final = re.compile(rb"[!-)+-=?-~]{1,255}")
"""A subject to publish to: printable, without wildcards."""
LONGEST_MACHINE: Final = 40
"""Characters of a machine's name in a worker's id."""
KNOWN_WORKERS: Final = 4096
"""Control subjects that are remembered: one is needed for each credit and cancel."""

PRESENCE_ALL: Final = f"{PREFIX}.presence.>"
SLOTS_ALL: Final = f"{PREFIX}.slot.>"


def chat(tier: str) -> str:
    """Requests of a tier, published by the ingress with a reply inbox; queue group :data:`QUEUE_GROUP`."""
    return f"{PREFIX}.chat.{tier}"


def machine_of(hostname: str) -> str:
    """What a machine is called in its workers' ids, and in its NATS user: a safe subject token."""
    return re.sub(r"[^a-z0-9-]+", "-", hostname.lower()).strip("-")[:LONGEST_MACHINE] or "host"


def direct(tier: str, worker: str) -> str:
    """Requests for one worker of a tier, while the queue group may have members that do not answer."""
    return f"{chat(tier)}.{_place(worker)}"


def direct_of(tier: str, kind: str, machine: str = "*") -> str:
    """Every :func:`direct` of one kind of worker, on one machine or on all."""
    return f"{chat(tier)}.{kind}.{machine}.*"


@functools.lru_cache(KNOWN_WORKERS)
def control(worker: str) -> str:
    """Leases, credits, cancels and further body parts, from the ingress to one worker process."""
    return f"{PREFIX}.ctl.{_place(worker)}"


def _place(worker: str) -> str:
    """A worker's id, behind its kind and its machine as tokens of their own.

    The id is ``<kind>-<machine>-<number>``. Permissions are written by token, so that a worker can be kept
    from what is sent to other kinds and machines.
    """
    kind, _, rest = worker.partition("-")
    return f"{kind}.{rest.rpartition('-')[0] or rest or kind}.{worker}"


def control_of(kind: str, machine: str = "*") -> str:
    """Every :func:`control` of one kind of worker, on one machine or on all."""
    return f"{PREFIX}.ctl.{kind}.{machine}.*"


def service(kind: str) -> str:
    """What workers of this kind are called in NATS's service discovery."""
    return f"tierfall-worker-{kind}"


def answer(payload: bytes) -> str:
    """The subject that a LEASE or PING wants its answer on, from its payload; empty if it names none."""
    return payload.decode("ascii") if ANSWER.fullmatch(payload) else ""


def presence(tier: str, worker: str) -> str:
    """One worker's beat for one tier; see :class:`tierfall.protocol.presence.Beat`."""
    return f"{PREFIX}.presence.{tier}.{worker}"


def slot(tier: str) -> str:
    """A full worker of this tier has a free slot again and is back in the queue group."""
    return f"{PREFIX}.slot.{tier}"
