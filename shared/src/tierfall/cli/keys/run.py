"""The three subcommands of ``tierfall keys``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.bus import Bus, BusOptions
from tierfall.cli.keys.table import as_json, as_text
from tierfall.config import Limits, load
from tierfall.config.check import KEY_NAME, KEY_NAME_SAID, limits
from tierfall.config.decode import near
from tierfall.config.scalars import rate, shown, spend
from tierfall.errors import ConfigError
from tierfall.keys import KeyStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path
    from typing import TextIO

    from tierfall.config import Config
    from tierfall.keys import KeyRecord
    from tierfall.ledger import Account

CONNECT_S: Final = 5.0
NAME_CHARACTERS: Final = 64


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the keys are: the config's NATS, as this user if a seed is given."""

    config: Path
    nkey: str = ""


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks for; rates as they are written in the config."""

    name: str
    models: Sequence[str] = ()
    requests: Sequence[str] = ()
    tokens: Sequence[str] = ()
    budget: Sequence[str] = ()
    timezone: str = "UTC"


def create(place: Place, wanted: Create, environ: Mapping[str, str], out: TextIO, err: TextIO) -> int:
    """Makes a key and prints it, the only time that it is shown: the key alone on ``out``.

    Raises:
        ConfigError: Something on the command line or in the file is wrong, or the name is taken.
        BusError: NATS cannot store it.
    """
    config = load(place.config, environ, for_worker=True)
    checked = _limits(wanted)
    for model in wanted.models:
        if model not in config.models:
            raise ConfigError(
                f"--model: {shown(model)} is not a model of {place.config}; {near(model, config.models)}"
            )
    if not KEY_NAME.fullmatch(wanted.name) or len(wanted.name) > NAME_CHARACTERS:
        raise ConfigError(
            f"--name: is {shown(wanted.name)}, must be up to {NAME_CHARACTERS} of {KEY_NAME_SAID}"
        )
    key = _asking(place, config, lambda keys: keys.create(wanted.name, wanted.models or None, checked))
    print(key, file=out, flush=True)
    print(f"This is the key of {wanted.name}. It is shown this once and kept nowhere.", file=err)
    if not config.server.stored_keys:
        print(f"{place.config} has no server.stored_keys: true, so no ingress lets it in yet.", file=err)
    return 0


def list_(place: Place, environ: Mapping[str, str], out: TextIO, err: TextIO, *, json: bool = False) -> int:
    """Prints the keys: names, beginnings, models, limits and their use; never a key, which nobody has.

    Raises:
        ConfigError, BusError: As :func:`create`.
    """
    config = load(place.config, environ, for_worker=True)

    async def work(keys: KeyStore) -> tuple[dict[str, KeyRecord], list[str], dict[str, Account], float]:
        found, unreadable = await keys.all()
        accounts = await keys.accounts(found)
        return found, unreadable, accounts, keys.now()

    found, unreadable, accounts, now = _asking(place, config, work)
    (as_json if json else as_text)(found, accounts, now, out)
    for name in unreadable:
        print(f"{name} was made by another version and cannot be read: no ingress lets it in", file=err)
    return 0


def revoke(place: Place, names: Sequence[str], environ: Mapping[str, str], err: TextIO) -> int:
    """Revokes keys; the exit status is 1 when one of them was not there.

    Raises:
        ConfigError, BusError: As :func:`create`.
    """
    config = load(place.config, environ, for_worker=True)

    async def work(keys: KeyStore) -> int:
        status = 0
        for name in names:
            if KEY_NAME.fullmatch(name) and await keys.revoke(name):
                print(f"{name} is revoked", file=err)
                continue
            status = 1
            known, unreadable = await keys.all()
            print(f"there is no key named {shown(name)}; {near(name, [*known, *unreadable])}", file=err)
        return status

    status: int = _asking(place, config, work)
    return status


def _limits(wanted: Create) -> Limits:
    found = Limits(
        requests=_read(rate, "--requests", wanted.requests),
        tokens=_read(rate, "--tokens", wanted.tokens),
        budget=_read(spend, "--budget", wanted.budget),
        timezone=wanted.timezone,
    )
    if problem := next(limits("-", found), None):
        flag = problem.path.removeprefix("-.").partition("[")[0]
        raise ConfigError(f"--{flag}: {problem.text}")
    return found


def _read(reader: Callable[[str], Any], flag: str, texts: Sequence[str]) -> tuple[Any, ...]:
    try:
        return tuple(reader(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _asking(place: Place, config: Config, work: Callable[[KeyStore], Coroutine[Any, Any, Any]]) -> Any:
    async def connected() -> Any:
        async with _bus(place, config) as bus:
            return await work(KeyStore(bus, config.nats.replicas))

    logging.getLogger("tierfall").addHandler(logging.NullHandler())  # what goes wrong is told by the error
    return asyncio.run(connected())


@contextlib.asynccontextmanager
async def _bus(place: Place, config: Config) -> AsyncIterator[Bus]:
    nats = msgspec.structs.replace(config.nats, nkey=place.nkey, creds="") if place.nkey else config.nats
    bus = await Bus.connect(BusOptions.of(nats, "tierfall-keys", CONNECT_S))
    try:
        yield bus
    finally:
        await bus.close()
