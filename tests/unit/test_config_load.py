"""The config file: what is accepted, and what a bad one is told."""

from __future__ import annotations

import io
import traceback
from pathlib import Path

import msgspec
import pytest

from tierfall.cli import check as command
from tierfall.config import (
    ApiKey,
    CloudTier,
    Config,
    Deadlines,
    Duration,
    Limits,
    Money,
    OllamaTier,
    Price,
    Rate,
    Secret,
    Spend,
    VllmTier,
    Wait,
    load,
    parse,
)
from tierfall.config.scalars import rate, show_rate, spend
from tierfall.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOOD = """
tiers:
  vllm: {worker: vllm, base_url: http://127.0.0.1:8000/v1}
models:
  qwen: {tier: vllm, backend_model: Qwen}
"""


def with_line(place: str, line: str) -> str:
    """The good file with one more entry in its ``place``."""
    marks = {
        "top": ("\ntiers:", f"\n{line}\ntiers:"),
        "tier": ("{worker: vllm,", f"{{{line}, worker: vllm,"),
        "model": ("{tier: vllm,", f"{{{line}, tier: vllm,"),
        "deadlines": ("{tier: vllm,", f"{{deadlines: {{{line}}}, tier: vllm,"),
    }
    before, after = marks[place]
    assert before in GOOD
    return GOOD.replace(before, after)


def refused(text: str, environ: dict[str, str] | None = None) -> str:
    """What the text is refused with."""
    with pytest.raises(ConfigError) as caught:
        parse(text, environ or {}, "home.yaml")
    return caught.value.message


def test_a_small_file_gets_the_defaults() -> None:
    """A config of one tier and one model is enough, and the rest is the schema's defaults."""
    config = parse(GOOD, {}, "home.yaml")
    tier = config.tiers["vllm"]
    assert isinstance(tier, VllmTier)
    assert (tier.kind, tier.max_in_flight, config.server.port) == ("vllm", 32, 4000)
    assert config.models["qwen"].deadlines == Deadlines()
    assert config.ladder("qwen") == ("qwen",)


def test_every_kind_of_value() -> None:
    """Durations come out in seconds, sizes in bytes, secrets from the environment, names as they stand."""
    config = parse(
        """
        server:
          host: "0.0.0.0"
          port: 8080
          max_body: 1.5KiB
          api_keys:
            - ${FIRST}
            - key: plain
              name: ci
              models: [no]
              limits: {requests: [30/m, 6000/d], tokens: [9/month], budget: [0.5/d, 12.000001/total]}
        nats: {url: "nats://a:4222,nats://b:4222"}
        tiers:
          cpu: {worker: ollama, base_url: http://h:1, pull: true, num_ctx: 8192, keep_alive: -1, run: [o, 01]}
          far: {worker: cloud, provider: mine, base_url: https://h/v1, api_key: ${FAR}}
        models:
          no:
            tier: cpu
            backend_model: 1.10
            when_full: wait(1.5m)
            deadlines: &clocks {first_token: 500ms, load: 3m, total: 1h, budget: 2h}
          a/b:
            tier: far
            backend_model: "null"
            price: {prompt: 0.15, completion: 20}
            fallbacks: [no]
            when_full: escalate
            deadlines: {idle: 7s, <<: *clocks, total: 2h}
        """,
        {"FIRST": "sk-first\n", "FAR": "sk-far"},
        "home.yaml",
    )
    assert config.server.max_body == 1536
    limits = Limits(
        requests=(Rate(30, "minute"), Rate(6000, "day")),
        tokens=(Rate(9, "month"),),
        budget=(Spend(500_000, "day"), Spend(12_000_001, "total")),
    )
    assert config.server.api_keys == (
        ApiKey(key=Secret("sk-first", "FIRST"), name="key-1"),
        ApiKey(key=Secret("plain"), name="ci", models=("no",), limits=limits),
    )
    cpu, far = config.tiers["cpu"], config.tiers["far"]
    assert isinstance(cpu, OllamaTier)
    assert isinstance(far, CloudTier)
    assert (cpu.pull, cpu.num_ctx, cpu.keep_alive, cpu.run) == (True, 8192, "-1", ("o", "01"))
    assert far.api_key.value == "sk-far"
    no, ab = config.models["no"], config.models["a/b"]
    assert (no.backend_model, no.when_full, ab.backend_model) == ("1.10", Wait(90), "null")
    clocks = {"first_token": Duration(0.5), "load": Duration(180), "total": Duration(3600)}
    assert no.deadlines == Deadlines(**clocks, budget=Duration(7200))
    assert ab.deadlines == Deadlines(
        **clocks | {"total": Duration(7200)}, budget=Duration(7200), idle=Duration(7)
    )
    assert config.ladder("a/b") == ("a/b", "no")
    assert (ab.price, no.price) == (Price(prompt=Money(0.15), completion=Money(20)), Price())


def test_a_heading_with_nothing_under_it_is_its_default() -> None:
    """A section whose entries are all commented out counts as left out."""
    text = with_line("top", "server:\nnats:") + "    # fallbacks: [b]\n"
    assert parse(text, {}, "home.yaml") == parse(GOOD, {}, "home.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The file as a whole.
        ("", "home.yaml: is empty; a config needs at least tiers and models"),
        ("hello", "home.yaml:1: is a single value, must be a mapping"),
        ("tiers: [a", "home.yaml:1: is not YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("a: 1\n\tb: 2", "home.yaml:2: is not YAML: "),
        ("a: \x07", "home.yaml: is not YAML: special characters are not allowed"),
        ("a: 1\n---\nb: 2", "home.yaml:2: is not YAML: expected a single document in the stream"),
        ("[" * 5000, "home.yaml: is nested too deep"),
        ("a: !env B", "home.yaml:1: a: a YAML tag (!...) means nothing here; take it out"),
        ("a: &x [*x]", "home.yaml:1: a[0]: an alias (*) stands inside its own anchor (&)"),
        ("a: {<<: b}", "home.yaml:1: a: << takes an alias of a mapping, or a list of them"),
        ("[a]: b", "home.yaml:1: a key must be text, not a list or a mapping"),
        (
            GOOD + "  qwen: {tier: vllm, backend_model: b}",
            "home.yaml:6: models.qwen: stands twice; the first is in line 5",
        ),
        ("models: {}\ntiers: {}", "home.yaml:1: models: is empty; without one nothing can be answered"),
        # Keys.
        (with_line("top", "sever: {}"), 'home.yaml:2: sever: unknown key; did you mean "server"?'),
        (with_line("top", "zzz: 1"), "home.yaml:2: zzz: unknown key; known: models, nats, server, tiers"),
        (
            with_line("deadlines", "first_tokn: 3s"),
            'home.yaml:5: models.qwen.deadlines.first_tokn: unknown key; did you mean "first_token"?',
        ),
        ("tiers: {a: {worker: vllm}}", "home.yaml:1: tiers.a.base_url: is missing"),
        ("tiers: {a: {worker: vllm}}", "home.yaml:1: models: is missing"),
        (
            "tiers: {}\nmodels: {a.b: {tier: x}}",
            'home.yaml:2: models["a.b"].backend_model: is missing',
        ),
        # Kinds of value.
        (with_line("top", "server: {port: 010}"), 'server.port: is "010", must be a whole number; write 10'),
        (with_line("top", "server: {port: web}"), 'server.port: is "web", must be a whole number'),
        (with_line("top", "server: {port: }"), "server.port: is empty; write a value, or take the key out"),
        (with_line("top", "server: {port: [1]}"), "server.port: is a list, must be a single value"),
        (with_line("top", "server: 4000"), "home.yaml:2: server: is a single value, must be a mapping"),
        (with_line("top", "server: {max_body: 3Mb}"), 'server.max_body: is "3Mb", must be a size such as '),
        (with_line("top", "server: {max_body: 0.5}"), 'is "0.5", which is not a whole number of bytes'),
        (with_line("deadlines", "idle: 3"), "models.qwen.deadlines.idle: 3 has no unit; write 3s for sec"),
        (with_line("deadlines", "idle: 1:30"), 'idle: is "1:30", must be a duration such as 500ms, 3s, '),
        (with_line("deadlines", "load: null"), "models.qwen.deadlines.load: is empty; write a value, or "),
        (
            with_line("model", "fallbacks: b"),
            "models.qwen.fallbacks: is a single value, must be a list: [...]",
        ),
        (with_line("model", "when_full: wait(5)"), "models.qwen.when_full: 5 has no unit; write 5s"),
        (with_line("model", "when_full: no"), 'when_full: is "no", must be escalate, or wait(5s) with how '),
        ("tiers: []", "tiers: is a list, must be a mapping from names"),
        ("tiers: {a: b}", "tiers.a: is a single value, must be a mapping with worker and more"),
        ("tiers: {a: {}}", "tiers.a.worker: is missing; one of vllm, ollama, cloud"),
        ("tiers: {a: {worker: [vllm]}}", "tiers.a.worker: is a list, must be one of vllm, ollama, cloud"),
        ("tiers: {a: {worker: vlm}}", 'is "vlm", must be one of vllm, ollama, cloud; did you mean "vllm"?'),
        (
            "tiers: {a: {worker: ollama, base_url: http://h, pull: no}}",
            'tiers.a.pull: is "no", must be true or false',
        ),
        (with_line("model", "price: {prompt: $3}"), 'prompt: is "$3", must be an amount such as 0.15 or 20'),
        *(
            (with_line("top", f"server: {{api_keys: [{{key: k, limits: {{{limits}}}}}]}}"), expected)
            for limits, expected in (
                ("requests: [30]", 'requests[0]: is "30", must be an amount and m (a minute), d (a day)'),
                ("requests: [30/min]", 'is "30/min", must be an amount and m (a minute), d (a day), month'),
                ("requests: [0/m]", 'requests[0]: is "0/m", must be at least 1'),
                ("requests: [1.5/m]", 'requests[0]: is "1.5", must be a whole number'),
                ("tokens: [1_000/d]", 'tokens[0]: is "1_000", must be a whole number; write 1000'),
                ("budget: [$5/d]", 'budget[0]: is "$5", must be an amount such as 0.15 or 20, without a'),
                ("budget: [0.0/d]", 'budget[0]: is "0.0/d", must be more than nothing'),
                ("budget: 5/d", "limits.budget: is a single value, must be a list: [...]"),
            )
        ),
        # ${NAME}.
        (with_line("model", "context_window: ${N}"), 'context_window: is "${N}", must be a whole number'),
        (
            GOOD.replace("http://127.0.0.1:8000", "http://${HOST}"),
            'tiers.vllm.base_url: is "http://${HOST}/v1"; ${...} is read only where a secret stands',
        ),
        (
            with_line("tier", "api_key: Bearer ${K}"),
            "tiers.vllm.api_key: must be ${NAME} and nothing else, or",
        ),
        (with_line("tier", "api_key: '${A-B}'"), "tiers.vllm.api_key: must be ${NAME} and nothing else, or"),
        (with_line("tier", "api_key: [a]"), "tiers.vllm.api_key: is a list, must be a single value such as"),
        (
            with_line("tier", 'api_key: ""'),
            "tiers.vllm.api_key: is empty; write a value, or take the key out",
        ),
    ],
)
def test_a_bad_file_is_told_where_and_what(text: str, expected: str) -> None:
    """Each mistake is named with file, line and path, with what is there and what would be right."""
    assert expected in refused(text)


def test_all_mistakes_are_told_at_once() -> None:
    """One run names every mistake, in the file's order."""
    text = """
server: {port: 010, hots: x}
tiers:
  a: {worker: vlm}
models:
  b: {tier: a, deadlines: {idle: 3, totl: 4s}}
"""
    lines = refused(text).splitlines()
    places = [":".join(line.split(":")[:3]) for line in lines]
    assert sorted(places) == [
        "home.yaml:2: server.hots",
        "home.yaml:2: server.port",
        "home.yaml:4: tiers.a.worker",
        "home.yaml:6: models.b.backend_model",
        "home.yaml:6: models.b.deadlines.idle",
        "home.yaml:6: models.b.deadlines.totl",
    ]
    assert [place.split(":")[1] for place in places] == ["2", "2", "4", "6", "6", "6"]


def test_aliases_that_double_are_read_once() -> None:
    """A file whose aliases unfold to millions of entries is refused as quickly as any."""
    rows = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    assert "unknown key" in refused("\n".join(rows))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and one that is not UTF-8 are config errors with the file's name."""
    broken = tmp_path / "latin.yaml"
    broken.write_bytes(b"a: \xff")
    for path, expected in [
        (tmp_path / "none.yaml", "none.yaml: cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (broken, "latin.yaml: is not UTF-8: byte 3 cannot be read"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        assert expected in caught.value.message


def test_a_tier_without_its_variable_is_not_the_files_fault() -> None:
    """A provider key that is not set leaves an empty secret that still knows its variable."""
    config = parse(with_line("tier", "api_key: ${UNSET}"), {}, "home.yaml")
    tier = config.tiers["vllm"]
    assert isinstance(tier, VllmTier)
    assert not tier.api_key
    assert tier.api_key == Secret("", "UNSET")


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("vllm:", "vllm: &x", 1) + "server: {api_keys: hunter2}",
        GOOD + "server: {api_keys: {hunter2: a}}",
        GOOD + "server: {api_keys: [{hunter2: a}]}",
        GOOD + "server: {api_keys: [{key: [hunter2]}]}",
        GOOD + "server: {api_keys: [hunter2, hunter2]}",
        GOOD + "server: {api_keys: [{key: hunter2, models: [x]}]}",
        GOOD + "server: {api_keys: [hunter2",
        GOOD + "server: {api_keys: ['hunter2]}",
        GOOD + "server:\n  api_keys: hunter2: b",
        GOOD + "server: {api_keys: ['${A}hunter2']}",
        GOOD + "nats: {token: hunter2, host: 0.0.0.0, port: 0}",
        GOOD + "nats: {url: nats://me:hunter2@host:4222}",
        GOOD.replace("127.0.0.1", "me:hunter2@127.0.0.1"),
    ],
)
def test_no_message_shows_a_secret(text: str) -> None:
    """Neither the message nor the traceback of a refused file quotes a key, wherever it stands."""
    with pytest.raises(ConfigError) as caught:
        parse(text, {}, "home.yaml")
    assert "hunter2" not in caught.value.message
    assert not any("hunter2" in line for line in traceback.format_exception(caught.value))


def test_a_config_does_not_show_its_secrets() -> None:
    """No repr, no format and no encoder writes a secret out."""
    text = GOOD + "server: {api_keys: [hunter2]}\nnats: {token: hunter2}"
    config = parse(text.replace("worker: vllm,", "worker: vllm, api_key: hunter2,"), {}, "home.yaml")
    assert config.server.api_keys[0].key.value == "hunter2"
    for shown in (repr(config), str(config), f"{config.nats.token}", "%s %r" % ((config.nats.token,) * 2)):
        assert "hunter2" not in shown
    with pytest.raises(TypeError):
        msgspec.json.encode(config)


@pytest.mark.parametrize("text", ["30/m", "6000/d", "7/month", "1/total"])
def test_a_rate_is_shown_as_it_is_written(text: str) -> None:
    """What is shown of a rate can be written into the file."""
    assert show_rate(rate(text)) == text
    assert show_rate(spend(text)) == text
    assert show_rate(spend("0.000001/d")) == "0.000001/d"


def test_secrets_waits_and_rates_are_values() -> None:
    """They compare and hash by what they hold, and do not change."""
    assert {Secret("a", "B"), Secret("a", "B"), Secret("a")} == {Secret("a"), Secret("a", "B")}
    assert {Wait(5), Wait(5.0)} == {Wait(5)}
    assert Secret("a") != "a"
    assert Wait(5) != 5
    assert {Rate(5, "day"), Rate(5, "day")} == {Rate(5, "day")}
    assert Rate(5, "day") != Spend(5, "day")
    with pytest.raises(AttributeError):
        Rate(5, "day").amount = 6
    with pytest.raises(AttributeError):
        Secret("a").value = "b"
    with pytest.raises(AttributeError):
        Wait(5).seconds = 6


def test_a_worker_gets_no_client_keys() -> None:
    """A worker reads the same file without the client keys, set or not."""
    text = GOOD + "server: {host: 0.0.0.0, api_keys: [${CLIENT}]}"
    assert "CLIENT is not set; an empty key would let everybody in" in refused(text)
    assert parse(text, {"CLIENT": "hunter2"}, "home.yaml", for_worker=True).server.api_keys == ()
    assert parse(text, {}, "home.yaml", for_worker=True).server.api_keys == ()


def test_check_prints_the_ladders_and_no_secret(tmp_path: Path) -> None:
    """``tierfall check`` of a good file shows ladders, tiers and which secrets are set, and returns 0."""
    file = tmp_path / "home.yaml"
    file.write_text(
        """
server: {host: 0.0.0.0, api_keys: [${CLIENT}]}
tiers:
  gpu: {worker: vllm, base_url: http://h:8000}
  far: {worker: cloud, provider: groq, api_key: ${FAR}}
models:
  big: {tier: gpu, backend_model: b, fallbacks: [small], deadlines: {first_token: 1500ms}}
  small: {tier: far, backend_model: s}
"""
    )
    out = io.StringIO()
    assert command.run(str(file), out, {"CLIENT": "hunter2"}) == 0
    printed = out.getvalue()
    assert "hunter2" not in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["big", "gpu", "(1.5s)", ">", "far", "(30s)"] in rows
    assert ["far", "cloud", "groq", "64"] in rows
    assert ["server.api_keys[0]", "CLIENT", "set"] in rows
    assert ["tiers.far.api_key", "FAR", "not", "set"] in rows
    assert "  tiers.far.api_key: FAR is not set, so this tier cannot answer" in printed
    assert "  tiers.gpu.base_url: does not end in /v1, as vLLM's own does" in printed


def test_check_prints_the_problems(tmp_path: Path) -> None:
    """``tierfall check`` of a bad file prints each problem and how many there are, and returns 1."""
    file = tmp_path / "home.yaml"
    file.write_text(with_line("deadlines", "idle: 3, totl: 5s"))
    out = io.StringIO()
    assert command.run(str(file), out, {}) == 1
    assert f"{file}:5: models.qwen.deadlines.totl: unknown key; did you mean" in out.getvalue()
    assert out.getvalue().endswith("\n2 problems; the file cannot be used\n")


def test_the_full_example_is_good() -> None:
    """The example of everything can be used with nothing set, and its free plans are in no ladder."""
    out = io.StringIO()
    assert command.run(str(ROOT / "examples/full.yaml"), out, {}) == 0, out.getvalue()
    config = load(ROOT / "examples/full.yaml", {})
    assert config.ladder("vllm-qwen") == ("vllm-qwen", "ollama-qwen", "openai-gpt4o")
    behind = {name for model in config.models.values() for name in model.fallbacks}
    assert {config.models[name].tier for name in behind} == {"ollama", "openai"}
    assert len(config.tiers) == 6


def test_the_page_names_every_key() -> None:
    """Each field of the schema stands in the config page, with the key's own name."""
    page = (ROOT / "docs/config.md").read_text()
    seen: set[str] = set()

    def walk(kind: msgspec.inspect.Type) -> None:
        match kind:
            case msgspec.inspect.StructType():
                seen.update(field.encode_name for field in kind.fields)
                for field in kind.fields:
                    walk(field.type)
            case msgspec.inspect.UnionType():
                for one in kind.types:
                    walk(one)
            case msgspec.inspect.DictType():
                walk(kind.value_type)
            case msgspec.inspect.VarTupleType():
                walk(kind.item_type)

    walk(msgspec.inspect.type_info(Config))
    assert "first_token" in seen
    assert "keep_alive" in seen
    assert {name for name in seen if f"`{name}`" not in page} == set()
