"""``tierfall nats-config``: a nats-server config with a user per service, and their seeds.

Each user may do what its service does and nothing else, by allow-lists: no worker reads another's answers,
takes another kind's requests or asks anything itself. Replies are allowed by the inboxes' subjects and not by
``allow_responses``: what the server allows for a response it forgets with the connection, so that after a
reconnect the streams in flight would be refused.

Of an ingress's inbox a worker may publish to the part for replies alone. The rest is between that ingress and
the server: JetStream's answers, entries of buckets, NATS's 503 for a worker that is gone.

In JetStream an ingress makes both buckets, follows both and writes the clients' accounts; a cloud worker
reads the quotas and writes the providers' accounts; ``admin`` reads and writes what is there, for
``tierfall keys`` and the ``nats kv`` command.

nats-server answers to whatever reply subject a message names, and asks for no permission there: the answer
to a write, sent to a client's account, would be stored as that account. So the users of cloud workers are in
a NATS account of their own, into which the other exports what they need: answers stay in the asking account.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from tierfall.bus import nkey
from tierfall.bus.service import PREFIX as DISCOVERY
from tierfall.bus.service import VERBS
from tierfall.cli.up.nats import LIMITS, STORE_NAME, jetstream, quoted
from tierfall.errors import ConfigError
from tierfall.protocol import subjects
from tierfall.store import names as store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import TextIO

    from tierfall.config import Config

KINDS: Final = ("vllm", "ollama", "cloud")
SEED_NAME: Final = "nkey"
"""The file in each user's folder."""
WORKER: Final = "worker-"
ADMIN: Final = "admin"
SERVER_FOLDER: Final = "nats"
ROUTES_NAME: Final = "route-password"
"""The file with what the servers of a cluster show each other."""
ROUTES_BYTES: Final = 24
SERVER_TIME: Final = "$SYS.REQ.USER.INFO"
"""What the doctor compares clocks with, as the admin or beside an ingress."""
ANY_TIER: Final = "*"
ACCOUNT: Final = "TIERFALL"
APART: Final = "TIERFALL_CLOUD"
"""The account of those who ask JetStream and may not write all of it: where its answer goes they choose."""

SERVER_CONF: Final = f"""\
# Written by `tierfall nats-config`. Who may do what stands in users.conf beside it.
host: 0.0.0.0
port: 4222
http: 127.0.0.1:8222 # health and numbers, without a password: for this machine alone
{LIMITS}include "users.conf"
"""


_ASKING: Final = (subjects.chat(">"), f"{subjects.PREFIX}.ctl.>")
"""Requests, and what goes to the workers that took them."""


class User(msgspec.Struct, frozen=True, kw_only=True):
    """One user of the server: a subject in ``subscribe`` may be followed by the only queue group allowed."""

    name: str
    public_key: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    apart: bool = False
    """Whether it is in an account of its own, from which only these subjects lead into the other."""


def run(
    out_dir: Path,
    config: Config | None,
    ingresses: int,
    out: TextIO,
    *,
    machines: Sequence[str] = (),
    store_dir: Path | None = None,
) -> int:
    """Writes ``nats/nats.conf``, ``nats/users.conf``, ``nats/route-password`` and ``<user>/nkey``.

    Seeds that are there already are kept, and with them the users of machines, so that it can be run again
    for a changed config; so is the password. nats-server takes over a new ``users.conf`` at SIGHUP.

    Args:
        out_dir: Made if it is not there; the seeds in it are readable by their owner alone.
        config: Whose tiers the workers may serve; any tier when it is None.
        ingresses: How many users for ingresses: several that share one could read each other's replies.
        out: Where to say what was written.
        machines: ``vllm@gpubox``: a user for the workers of one kind on one machine, beside the user that
            all of the kind may share. Such a worker cannot read what goes to workers on other machines.
        store_dir: Where the server keeps JetStream's files, by the name that it has on the server's side;
            beside its config when it is None.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: The folder cannot be written, or holds a file that is no seed; a machine's name is none.
    """
    for machine in machines:
        _check_machine(machine)
    if ingresses < 1:
        raise ConfigError(f"--ingresses is {ingresses}: at least 1 is needed")
    try:
        kept = (path.parent.name.removeprefix(WORKER) for path in out_dir.glob(f"{WORKER}*@*/{SEED_NAME}"))
        names = user_names(ingresses, sorted({*machines, *kept}))
        keys = {name: _key(out_dir / name / SEED_NAME) for name in names}
        folder = out_dir / SERVER_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "users.conf").write_text(users_conf(users(keys, config)), encoding="utf-8")
        stored = jetstream(store_dir or folder / STORE_NAME)
        (folder / "nats.conf").write_text(f"{SERVER_CONF}{stored}\n", encoding="utf-8")
        password = folder / ROUTES_NAME
        # The letter in front keeps nats-server from reading digits alone as a number.
        _keep(password, f"r{secrets.token_hex(ROUTES_BYTES)}")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--out: {error}") from None
    print(f"nats-server --config {folder / 'nats.conf'}", file=out)
    for name in keys:
        print(f"nats.nkey for {name}: {out_dir / name / SEED_NAME}", file=out)
    print(f"password between the servers of a cluster: {password}", file=out)
    return 0


def user_names(ingresses: int, machines: Sequence[str] = ()) -> list[str]:
    """The users: each ingress, each kind of worker, those of machines, and one for people."""
    front = ["ingress"] if ingresses == 1 else [f"ingress-{number}" for number in range(ingresses)]
    return [*front, *(f"{WORKER}{name}" for name in (*KINDS, *machines)), ADMIN]


def users(keys: dict[str, str], config: Config | None) -> list[User]:
    """Who may do what.

    Args:
        keys: Name to public key.
        config: As for :func:`run`.
    """
    askers = [nkey.inbox_prefix(key) for name, key in keys.items() if not name.startswith(WORKER)]
    replies = [f"{inbox}.{nkey.REPLIES}.>" for inbox in (*askers, nkey.PLAIN_INBOX)]
    found = []
    for name, key in keys.items():
        if name.startswith(WORKER):
            found.append(_worker(name, key, config, replies))
        else:
            found.append(_admin(name, key) if name == ADMIN else _ingress(name, key))
    return found


def users_conf(found: Iterable[User]) -> str:
    """The users in nats-server's notation."""
    apart: list[User] = []
    inside: list[User] = []
    for user in found:
        (apart if user.apart else inside).append(user)
    heard, said = _across(apart)
    return "\n".join(
        [
            "# Written by `tierfall nats-config`: public keys and permissions, no secret.",
            f"# What the server answers to {APART} goes to no subject of {ACCOUNT}: hence two accounts.",
            "accounts {",
            f"  {ACCOUNT} {{",
            "    jetstream: enabled",
            *_users(inside),
            "    exports = [",
            *(f"      {{ stream: {quoted(name)}, accounts: [{APART}] }}" for name in heard),
            *(f"      {{ service: {quoted(name)}, accounts: [{APART}] }}" for name in said),
            "    ]",
            "  }",
            f"  {APART} {{",
            *_users(apart),
            "    imports = [",
            *(f"      {{ stream: {{ account: {ACCOUNT}, subject: {quoted(name)} }} }}" for name in heard),
            *(f"      {{ service: {{ account: {ACCOUNT}, subject: {quoted(name)} }} }}" for name in said),
            "    ]",
            "  }",
            "}",
            "",
        ]
    )


def _across(apart: Iterable[User]) -> tuple[list[str], list[str]]:
    """What users in an account of their own hear of the other account, and what they say in it."""
    heard: dict[str, None] = {}
    said: dict[str, None] = {}
    for user in apart:
        if "@" in user.name:
            continue  # part of what its kind may: of two imports that overlap, each would deliver
        subscribed = (subject.partition(" ")[0] for subject in user.subscribe)
        heard |= dict.fromkeys(subject for subject in subscribed if not subject.startswith(nkey.PLAIN_INBOX))
        # JetStream's API as a whole: of a part, the server would answer for this account, which has none.
        asked = (f"{store.API}.>" if subject.startswith(store.API) else subject for subject in user.publish)
        said |= dict.fromkeys(asked)
    return list(heard), list(said)


def _users(found: Iterable[User]) -> Iterator[str]:
    yield "    users = ["
    for user in found:
        yield f"      # {user.name}"
        yield f"      {{ nkey: {user.public_key}, permissions: {{"
        yield f"          publish: {_list(user.publish)}"
        yield f"          subscribe: {_list(user.subscribe)} }} }}"
    yield "    ]"


def _ingress(name: str, key: str) -> User:
    return User(
        name=name,
        public_key=key,
        publish=(*_ASKING, SERVER_TIME, *_of_ingress()),
        subscribe=(subjects.PRESENCE_ALL, subjects.SLOTS_ALL, f"{nkey.inbox_prefix(key)}.>"),
    )


def _admin(name: str, key: str) -> User:
    """For ``tierfall doctor``, ``tierfall keys``, ``tierfall quota`` and the ``nats`` command."""
    return User(
        name=name,
        public_key=key,
        publish=(*_ASKING, f"{DISCOVERY}.>", SERVER_TIME, *_by_hand()),
        subscribe=(subjects.PRESENCE_ALL, f"{nkey.inbox_prefix(key)}.>", f"{nkey.PLAIN_INBOX}.>"),
    )


def _worker(name: str, key: str, config: Config | None, replies: Iterable[str]) -> User:
    kind, _, machine = name.removeprefix(WORKER).partition("@")
    tiers = _tiers(kind, config)
    counts = kind == "cloud"
    service = subjects.service(kind)
    return User(
        name=name,
        public_key=key,
        publish=(
            *(subjects.presence(tier, "*") for tier in tiers),
            *(subjects.slot(tier) for tier in tiers),
            *replies,
            # The bucket is made by an ingress: who may make one could have it record requests.
            *(store.to_use(store.QUOTA, store.PROVIDERS) if counts else ()),
        ),
        subscribe=(
            *(f"{subjects.chat(tier)} {subjects.QUEUE_GROUP}" for tier in tiers),
            *(subjects.direct_of(tier, kind, machine or "*") for tier in tiers),
            subjects.control_of(kind, machine or "*"),
            # Verb by verb: where a list allows `$SRV.*`, nats-server also allows to subscribe to `$SRV.>`.
            *(f"{DISCOVERY}.{verb}{name}" for verb in VERBS for name in ("", f".{service}", f".{service}.*")),
            # For JetStream's answers: no worker asks anything else.
            *((f"{nkey.inbox_prefix(key)}.>",) if counts else ()),
        ),
        apart=counts,
    )


def _check_machine(given: str) -> None:
    kind, at, machine = given.partition("@")
    if kind not in KINDS or not at or not machine:
        raise ConfigError(f"--worker {given}: write KIND@MACHINE, with a kind of {', '.join(KINDS)}")
    if (called := subjects.machine_of(machine)) != machine:
        raise ConfigError(f"--worker {given}: its workers call that machine {called}; write {kind}@{called}")


def _tiers(kind: str, config: Config | None) -> list[str]:
    if config is None:
        return [ANY_TIER]
    return [name for name, tier in config.tiers.items() if tier.kind == kind]


def _key(path: Path) -> str:
    """The public key of the seed in this file, which is made if it is not there."""
    _keep(path, f"{nkey.new_seed()}\n")
    return nkey.public_key(nkey.read_seed(path))


def _keep(path: Path, secret: str) -> None:
    """Writes a file that its owner alone may read; one that is there already stays as it is."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret)


def _of_ingress() -> list[str]:
    """What it does in JetStream. It makes no client keys and counts nothing for a provider."""
    buckets = (store.QUOTA, store.KEYS)
    made = [subject for bucket in buckets for do in (store.to_make, store.to_watch) for subject in do(bucket)]
    return [*made, *store.to_use(store.QUOTA, store.CLIENTS)]


def _by_hand() -> list[str]:
    """What ``tierfall keys`` and the ``nats kv`` command do in JetStream."""
    doings = (store.to_use, store.to_watch, store.to_look_at)
    return [subject for bucket in (store.QUOTA, store.KEYS) for do in doings for subject in do(bucket)]


def _list(items: Iterable[str]) -> str:
    return f"[{', '.join(quoted(item) for item in dict.fromkeys(items))}]"
