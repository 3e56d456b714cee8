"""Asking JetStream: one request, one JSON answer, and what its errors mean here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import StoreAbsent, StoreSilent, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.bus import Bus

TIMEOUT_S: Final = 3.0
"""For one answer. Within one data centre it takes a millisecond or two."""

# JetStream's own error codes, from nats-server's server/errors.json.
NO_SUCH_STREAM: Final = 10059
NO_SUCH_MESSAGE: Final = 10037
WRONG_LAST_SEQUENCE: Final = 10071
NAME_IN_USE: Final = 10058
NO_CLUSTER: Final = 10074

NO_JETSTREAM: Final = "NATS has no JetStream: add `jetstream { store_dir: ... }` to the server's config"
HINTS: Final[Mapping[int, str]] = {
    10005: "fewer NATS servers with JetStream are up than nats.replicas asks for (three, if it is not set)",
    10039: "JetStream is off for this user's NATS account: add `jetstream: enabled` to the account",
    10076: NO_JETSTREAM,
}


class Refused(Exception):
    """JetStream's answer is an error.

    Args:
        number: JetStream's own code of it.
        text: Its description.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        self.text = text


async def ask(
    bus: Bus,
    subject: str,
    body: bytes | Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    *,
    nobody: str = NO_JETSTREAM,
) -> dict[str, Any]:
    """One request and its answer; ``nobody`` says what it means that nobody listens to the subject.

    Raises:
        Refused: The answer is an error which the caller may know what to do about.
        StoreUnavailable: There is no JetStream, no answer, or an error that only an operator can mend; the
            message says which. Without an answer it is unknown whether the request was carried out.
        BusDown: NATS is not connected, and the request was not sent.
    """
    payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
    refused_before = bus.counters.permission_violations
    try:
        answer = await bus.request(subject, payload, timeout_s=TIMEOUT_S, headers=headers)
    except TimeoutError:
        if bus.counters.permission_violations > refused_before:
            raise StoreUnavailable(
                f"NATS does not allow this user to publish {subject}: see `tierfall nats-config`"
            ) from None
        raise StoreSilent(f"JetStream gave no answer on {subject} within {TIMEOUT_S:g} s") from None
    if answer.no_responders:
        raise StoreAbsent(nobody) if nobody == NO_JETSTREAM else StoreUnavailable(nobody)
    try:
        found = msgspec.json.decode(answer.data, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise StoreUnavailable(f"what answers on {subject} is not JetStream") from None
    error = found.get("error")
    if error:
        number, text = int(error.get("err_code", 0)), str(error.get("description", error))
        if number in HINTS:
            raise StoreUnavailable(HINTS[number])
        raise Refused(number, text)
    return found
