"""What is wrong between the keys of a file: references, clocks, doors left open."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tierfall.cli import check
from tierfall.config import (
    Config,
    Deadlines,
    Secret,
    Server,
    VllmTier,
    load,
    notes,
    parse,
    problems,
    warnings,
)
from tierfall.config.check import is_loopback
from tierfall.config.scalars import show_duration
from tierfall.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOOD = """
server: {}
nats: {}
tiers:
  gpu: {worker: vllm, base_url: http://127.0.0.1:8000/v1}
  cpu: {worker: ollama, base_url: http://127.0.0.1:11434}
  far: {worker: cloud, provider: groq, api_key: sk}
models:
  big: {tier: gpu, backend_model: b}
  small: {tier: cpu, backend_model: s}
  last: {tier: far, backend_model: l}
"""


def changed(before: str, after: str) -> str:
    """The good file with one place changed."""
    assert GOOD.count(before) == 1
    return GOOD.replace(before, after)


def server(entries: str) -> str:
    """The good file with these entries under ``server``."""
    return changed("server: {}", f"server: {{{entries}}}")


def nats(entries: str) -> str:
    """The good file with these entries under ``nats``."""
    return changed("nats: {}", f"nats: {{{entries}}}")


def big(entries: str) -> str:
    """The good file with these entries in its first model."""
    return changed("backend_model: b}", f"backend_model: b, {entries}}}")


def test_the_good_file_is_good() -> None:
    """The file that the cases below break has no problem of its own."""
    assert problems(parse(GOOD, {}, "home.yaml")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # References.
        (changed("tier: gpu", "tier: gpx"), '9: models.big.tier: "gpx" is not a tier of this file; did you'),
        (changed("tier: gpu", "tier: zzz"), '"zzz" is not a tier of this file; known: cpu, far, gpu'),
        (
            big("fallbacks: [smal]"),
            'models.big.fallbacks[0]: "smal" is not a model of this file; did you mean ',
        ),
        (
            big("fallbacks: [small, big]"),
            "models.big.fallbacks[1]: is the model itself, which has failed when",
        ),
        (big("fallbacks: [last, last]"), 'models.big.fallbacks[1]: "last" stands in the list already'),
        (
            server("api_keys: [{key: a, models: [big, lst]}]"),
            'server.api_keys[0].models[1]: "lst" is not a model of this file; did you mean "last"?',
        ),
        (
            server("allowed_hosts: ['*']"),
            'server.allowed_hosts[0]: is "*", must be a name or address without a port',
        ),
        (server("allowed_hosts: [a.lan, 'b.lan:80']"), 'server.allowed_hosts[1]: is "b.lan:80", must be'),
        (server("allowed_hosts: [GW.lan]"), 'server.allowed_hosts[0]: is "GW.lan", must be a name'),
        (server("cors_origins: ['null']"), 'server.cors_origins[0]: is "null", must be'),
        # Operators.
        (server("port: 4000, admin: {port: 4000}"), "server.admin.port: is server.port too"),
        (server("admin: {port: 70000}"), "server.admin.port: is 70000, must be from 0 to 65535"),
        (server("admin: {}"), "server.admin.port: is missing"),
        (
            server("admin: {port: 1, host: 0.0.0.0}"),
            'server.admin_keys: is empty while server.admin.host is "0.0.0.0"',
        ),
        (server("admin_keys: ['${UNSET}']"), "server.admin_keys[0]: UNSET is not set; an empty key"),
        (
            server("api_keys: [a, b], admin_keys: [c, b]"),
            "server.admin_keys[1]: is the same key as server.api_keys[1]",
        ),
        # Names.
        (
            changed("gpu: {", "GPU: {"),
            "5: tiers.GPU: a tier's name is up to 63 of a-z, 0-9, _ and -, and begins",
        ),
        (changed("gpu: {", "a.b: {"), 'tiers["a.b"]: a tier\'s name is up to 63'),
        (changed("big: {", '" big": {'), "a model's name is printable text without white space around it"),
        (changed("backend_model: b}", 'backend_model: ""}'), "models.big.backend_model: is empty; write the"),
        # Addresses.
        (
            changed("http://127.0.0.1:8000", "ftp://h"),
            'tiers.gpu.base_url: is "ftp://h/v1", must be an http or',
        ),
        (changed("http://127.0.0.1:8000", "127.0.0.1:8000"), "tiers.gpu.base_url: is "),
        (changed("http://127.0.0.1:8000", "http://"), "tiers.gpu.base_url: is "),
        (changed("http://127.0.0.1:8000", "http://h:99999"), "tiers.gpu.base_url: is "),
        (changed("http://127.0.0.1:8000/v1", "'http://h/v1?key=1'"), "tiers.gpu.base_url: is "),
        (changed("8000/v1", "8000/v1#key"), "tiers.gpu.base_url: is "),
        (
            changed("127.0.0.1:8000", "me:pw@h"),
            "tiers.gpu.base_url: holds a user or password, which logs would",
        ),
        (
            changed("11434", "11434/v1/"),
            'tiers.cpu.base_url: is "http://127.0.0.1:11434/v1/", must be Ollama\'s',
        ),
        (
            changed("provider: groq", "provider: grok"),
            'tiers.far.provider: "grok" is not known and has no base',
        ),
        (changed("provider: groq", "provider: grok, base_url: h"), 'tiers.far.base_url: is "h", must be'),
        (nats("url: nats//h"), 'nats.url: is "nats//h", must be embedded, or nats://host:4222'),
        (nats("url: 'wss://h'"), 'nats.url: is "wss://h", must be embedded, or nats://host:4222'),
        (nats("url: 'nats://a,http://b'"), "nats.url: is "),
        (nats("url: 'nats://a, tls://b'"), "nats.url: mixes tls:// and nats://; write tls:// for all"),
        (nats("tls: {}"), "nats.tls: is for a server that nats.url names; the embedded one offers no TLS"),
        (
            nats("url: 'tls://a', tls: {key_file: /k}"),
            "nats.tls.key_file: needs its certificate too",
        ),
        (nats("url: 'tls://a', tls: {ca_file: /no}"), "nats.tls.ca_file: cannot read /no: No such file"),
        (nats("url: 'nats://u:p@a'"), "3: nats.url: holds a user or password; put it into token or creds"),
        (
            server("cors_origins: [https://a/b]"),
            'server.cors_origins[0]: is "https://a/b", must be an origin',
        ),
        # Doors.
        (
            server("host: 0.0.0.0"),
            '2: server.api_keys: is empty while host is "0.0.0.0", which other machines',
        ),
        (server("host: box.lan"), "server.api_keys: is empty while host"),
        (server('host: ""'), "server.host: is empty"),
        (
            server("api_keys: [${UNSET}]"),
            "server.api_keys[0]: UNSET is not set; an empty key would let every",
        ),
        (server("api_keys: [a, {key: a}]"), "server.api_keys[1]: is the same key as server.api_keys[0]"),
        (server("api_keys: [${SET}, ${SET}]"), "server.api_keys[1]: is the same key as server.api_keys[0]"),
        (
            nats("host: 0.0.0.0"),
            'nats.token: is missing while the embedded server listens on "0.0.0.0", which',
        ),
        (nats("host: '::', token: ${UNSET}"), "nats.token: UNSET is not set while the embedded server"),
        # Numbers.
        (server("port: 65536"), "server.port: is 65536, must be from 0 to 65535"),
        (nats("port: 0"), "nats.port: is 0, must be from 1 to 65535"),
        (server("max_body: 0"), "server.max_body: is 0"),
        (server("max_bodies: 1MiB"), "server.max_bodies: is smaller than server.max_body"),
        (
            changed("provider: groq", "provider: groq, max_in_flight: 0"),
            "tiers.far.max_in_flight: is 0, must be",
        ),
        (
            changed("provider: groq", "provider: groq, max_waiting: -1"),
            "tiers.far.max_waiting: is -1, must be at",
        ),
        (changed("11434}", "11434, num_ctx: 0}"), "tiers.cpu.num_ctx: is 0, must be at least 1"),
        (changed("11434}", "11434, run: ['']}"), "tiers.cpu.run: begins with an empty text"),
        (big("context_window: 0"), "models.big.context_window: is 0, must be at least 1"),
        (nats("replicas: 2"), "nats.replicas: is 2, must be 1, 3 or 5"),
        (nats("replicas: 7"), "nats.replicas: is 7, must be 1, 3 or 5"),
        # Client keys' limits.
        (
            server("api_keys: [{key: a, limits: {requests: [1/m]}}]"),
            "server.api_keys[0].name: is missing; a key with limits needs one",
        ),
        (
            server("api_keys: [{key: a, name: a b, limits: {requests: [1/m]}}]"),
            'server.api_keys[0].name: is "a b", must be letters, digits, _ and -',
        ),
        (
            server("api_keys: [&a {key: a, name: a, limits: {budget: [1/d]}}, {<<: *a, key: b}]"),
            "server.api_keys[1].name: is that of server.api_keys[0] too",
        ),
        (
            server("api_keys: [{key: a, name: a, limits: {tokens: [9/m, 99/d, 9/m]}}]"),
            "server.api_keys[0].limits.tokens[2]: is a second limit by minute",
        ),
        (
            server("api_keys: [{key: a, name: a, limits: {tokens: [9/m], timezone: Mars}}]"),
            'server.api_keys[0].limits.timezone: "Mars" is no time zone; write one such as UTC',
        ),
        # Clocks.
        (big("deadlines: {idle: 0s}"), "9: models.big.deadlines.idle: is 0s, must be longer"),
        (big("deadlines: {load: 0ms}"), "models.big.deadlines.load: is 0s, must be longer"),
        (big("deadlines: {total: 20s}"), "models.big.deadlines.first_token: is 30s, longer than total (20s)"),
        (big("deadlines: {budget: 1500ms}"), "deadlines.first_token: is 30s, longer than budget (1.5s)"),
        (big("deadlines: {load: 1h}"), "models.big.deadlines.load: is 1h, longer than total (10m)"),
        # Nothing there.
        ("tiers: {}\nmodels: {}", "1: tiers: is empty; without one nothing can be answered"),
    ],
)
def test_a_contradiction_is_told_where_and_what(text: str, expected: str) -> None:
    """Each contradiction is named with line and path, and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        parse(text, {"SET": "sk"}, "home.yaml")
    assert expected in caught.value.message
    assert all(line.startswith("home.yaml:") for line in caught.value.message.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        server("host: '::1'"),
        server("host: localhost, port: 0"),
        server("host: 0.0.0.0, api_keys: [a, {key: b, models: [big]}]"),
        server("host: 0.0.0.0, stored_keys: true"),
        server("api_keys: [{key: a, name: a.b-C_1, limits: {requests: [9/m, 9/d, 9/month, 9/total]}}]"),
        server("api_keys: [{key: a, name: a}, {key: b, name: a}, {key: c, limits: {}}]"),
        server("cors_origins: ['*', 'https://chat.example.org:8443', 'app://obsidian.md']"),
        server("allowed_hosts: [gw.lan, '*.example.org', 10.0.0.1, '[fd00::1]']"),
        server("admin: {port: 0, host: 0.0.0.0}, port: 0, admin_keys: [a, b]"),
        nats("url: 'tls://a:4222, tls://b', creds: /etc/nats.creds"),
        nats("host: 0.0.0.0, token: ${SET}"),
        big("fallbacks: [small, last]"),
        changed("provider: groq", "provider: mine, base_url: https://h/v1"),
        changed("8000/v1", "8000"),
    ],
)
def test_what_is_allowed(text: str) -> None:
    """What looks near to the mistakes above, but is right, is let through."""
    assert problems(parse(text, {"SET": "sk"}, "home.yaml")) == []


def test_all_contradictions_are_in_one_list() -> None:
    """A config built in code is checked alike, and every problem is in the list."""
    config = Config(
        tiers={"A": VllmTier(base_url="h", api_key=Secret("sk"))},
        models={},
        server=Server(host="0.0.0.0", port=-1),
    )
    assert [problem.split(":")[0] for problem in problems(config)] == [
        "server.port",
        "server.api_keys",
        "models",
        "tiers.A",
        "tiers.A.base_url",
    ]
    assert "server.api_keys" not in "".join(problems(config, for_worker=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed("tier: cpu", "tier: gpu"), "tiers.cpu: no model uses it"),
        (
            changed("api_key: sk", "api_key: ${UNSET}"),
            "tiers.far.api_key: UNSET is not set, so this tier cannot",
        ),
        (nats("token: ${UNSET}"), "nats.token: UNSET is not set"),
        (GOOD, "tiers.far.api_key: stands in the file; ${NAME} would keep it out"),
        (changed("8000/v1", "8000/"), "tiers.gpu.base_url: does not end in /v1, as vLLM's own does"),
        (
            big("fallbacks: [small, last], deadlines: {budget: 1m}"),
            "models.big.deadlines.budget: is 1m, but the tiers before the ladder's last may take 1m",
        ),
        (
            server("api_keys: [{key: a, name: a, models: [big], limits: {budget: [9/d]}}]"),
            "server.api_keys[0].limits.budget: no model that the key may use has a price",
        ),
        (
            big("fallbacks: [small, last]").replace(
                "server: {}", "server: {api_keys: [{key: a, models: [big, small]}]}"
            ),
            'server.api_keys[0].models: "big" does not fall back to "last" here, as the key may not use it',
        ),
        (
            server("allowed_hosts: [a.lan], api_keys: [a]"),
            "server.allowed_hosts: has no effect while clients",
        ),
        (nats("creds: /x"), "nats.creds: has no effect on an embedded server; it takes a token"),
    ],
)
def test_what_is_only_noted(text: str, expected: str) -> None:
    """What works but may not be meant is a note, and no problem."""
    config = parse(text, {}, "home.yaml")
    assert any(note.startswith(expected) for note in notes(config))


FAR = "provider: groq, api_key: sk"
GPU = "base_url: http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (changed(FAR, f"{FAR}, base_url: 'http://api.example.org/v1'"), "tiers.far"),
        (changed(FAR, f"{FAR}, base_url: 'HTTP://10.0.0.7/v1'"), "tiers.far"),
        (changed(FAR, "provider: x, api_keys: [a, b], base_url: 'http://proxy:8080/v1'"), "tiers.far"),
        (changed(FAR, "provider: x, api_key: '${UNSET}', base_url: 'http://api.example.org'"), "tiers.far"),
        (changed(GPU, "base_url: 'http://gpu.example.org:8000/v1', api_key: sk"), "tiers.gpu"),
        (changed(GPU, "base_url: 'http://8.8.8.8/v1', api_key: sk"), "tiers.gpu"),
    ],
)
def test_a_key_without_tls_is_warned_of(text: str, path: str) -> None:
    """A provider's beyond this machine, an engine's beyond the local network; the file is still good."""
    (said,) = warnings(parse(text, {}, "home.yaml"))
    assert said.startswith(f"{path}.base_url: is ")
    assert said.endswith("so the tier's key and all prompts travel unencrypted; write https://")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        changed(FAR, f"{FAR}, base_url: 'https://api.example.org/v1'"),
        changed(FAR, f"{FAR}, base_url: 'http://127.0.0.1:9000/v1'"),
        changed(FAR, f"{FAR}, base_url: 'http://[::1]:9000/v1'"),
        changed(GPU, "base_url: 'http://gpu.example.org:8000/v1'"),
        changed(GPU, "base_url: 'http://192.168.1.7:8000/v1', api_key: sk"),
        changed(GPU, "base_url: 'http://vllm:8000/v1', api_key: sk"),
        changed(GPU, "base_url: 'http://gpu.home.arpa:8000/v1', api_key: sk"),
    ],
)
def test_no_warning_without_a_key_or_near_by(text: str) -> None:
    """With TLS, on this machine, without a key, and for an engine on the local network."""
    assert warnings(parse(text, {}, "home.yaml")) == []


def test_an_open_door_is_a_warning() -> None:
    """Every page may ask a server that needs no key: it works, and is said first; keys close it."""
    every = "cors_origins: ['*']"
    (warning,) = warnings(parse(server(every), {}, "home.yaml"))
    assert warning.startswith("server.cors_origins: * lets every web page")
    assert warnings(parse(server(f"{every}, api_keys: [a]"), {}, "home.yaml")) == []
    assert warnings(parse(server(f"{every}, stored_keys: true"), {}, "home.yaml")) == []
    assert warnings(parse(server("cors_origins: ['https://a.example']"), {}, "home.yaml")) == []


def test_the_command_prints_warnings_before_notes(tmp_path: Path) -> None:
    """And the file is good all the same."""
    path, out = tmp_path / "home.yaml", io.StringIO()
    path.write_text(server("cors_origins: ['*']"))
    assert check.run(str(path), out, {}) == 0
    assert out.getvalue().index("warnings\n  server.cors_origins") < out.getvalue().index(
        "notes\n  tiers.far"
    )


def test_a_file_without_oddities_has_no_notes() -> None:
    """A config with its secrets in the environment and every tier in use has nothing to note."""
    assert notes(parse(changed("api_key: sk", "api_key: ${SET}"), {"SET": "sk"}, "home.yaml")) == []
    assert not any("no model uses" in note for note in notes(load(ROOT / "examples/full.yaml", {})))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.org", "", "127.0.0.1.org")],
)
def test_loopback(host: str, expected: bool) -> None:
    """Only addresses that no other machine can reach count as loopback; a name is not trusted."""
    assert is_loopback(host) is expected


def test_the_page_tells_the_clocks_defaults() -> None:
    """The config page's defaults of the deadlines are the schema's."""
    page = (ROOT / "docs/config.md").read_text()
    defaults = Deadlines()
    for name in ("first_token", "idle", "total", "budget"):
        assert f"| `{name}` | `{show_duration(getattr(defaults, name))}` |" in page
    assert defaults.load is None
