"""What a client may read of a backend's words: no address, no key, and everything else."""

from __future__ import annotations

import pytest

from tierfall.config import CloudTier, OllamaTier, Secret, VllmTier
from tierfall.errors import ContextLengthExceeded, InvalidRequest, RateLimited
from tierfall.redact import HIDDEN, Redactor, redactor_of

KEY = "sk-tier-SECRETvalue-9876abcd"
PLAIN = "plainsecretvalue42"
REDACTOR = Redactor(
    ["http://127.0.0.1:8101/v1", "http://gpubox:8000/v1", "https://llm.corp.example.com/v1"],
    [KEY, PLAIN, "none"],
)


@pytest.mark.parametrize(
    ("said", "hidden"),
    [
        ("a at http://127.0.0.1:8101/v1 cannot be reached", "127.0.0.1"),
        ("Incorrect API key provided: sk-proj-********abcd. See the page.", "abcd"),
        ("Incorrect API key provided: sk-...abcd", "abcd"),
        ("Incorrect API key provided: sk-abc", "sk-abc"),
        (f"key {KEY} refused", "9876abcd"),
        (f"{{'Authorization': 'Bearer {PLAIN}'}}", PLAIN),
        ("the key ending in abcd", "abcd"),
        ("key ...abcd is bad", "abcd"),
        ("key plain...ue42 is bad", "ue42"),
        ("your key plainsecr is wrong", "plainsec"),
        ("Invalid API key: ab12cd34ef56", "ab12cd34ef56"),
        ("api_key=AIzaSyD-1234567890abcdefghijklmnop", "AIza"),
        ("gsk_abcDEF123456 is wrong", "gsk_abc"),
        ("Authorization: Basic dXNlcjpwYXNz1", "dXNlcjpwYXNz1"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.SflKx", "eyJ"),
        ("Rate limit reached in organization `org_01hxyzabc12`", "org_01hxyz"),
        ("HTTPConnectionPool(host='gpu7', port=8001): Max retries", "gpu7"),
        ("connect ECONNREFUSED 192.168.1.5:11434", "192.168"),
        ("Connect call failed ('127.0.0.1', 8101), ('::1', 8101, 0, 0)", "127.0.0.1"),
        ("Connect call failed ('::1', 8101, 0, 0)", "::1"),
        ("dial tcp [fd00::12]:11434: connect: refused", "fd00"),
        ("lookup ollama.tierfall.svc.cluster.local: no such host", "cluster.local"),
        ("gpubox:8000 refused", "gpubox"),
        ("http://litellm-internal:4000/x said no", "litellm-internal"),
        ("LLM.corp.example.com is down", "corp"),
        ("https://user:pw@api.openai.com/v1", "pw"),
        ("localhost:8080 is down", "localhost"),
        ("no route to redis.internal", "redis"),
    ],
)
def test_addresses_and_keys_are_hidden(said: str, hidden: str) -> None:
    """Whole or in part, in every form in which servers print them."""
    shown = REDACTOR.text(said)
    assert HIDDEN in shown
    assert hidden not in shown


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "Unsupported value: 'temperature' does not support 0.2 with this model. Only 1 is.",
        "Unrecognized request argument supplied: top_k",
        "messages[3].content: Input should be a valid string",
        "temperature must be in [0.0, 2.0], not 1.5...3",
        "tools.0.custom.input_schema: draft https://json-schema.org/draft/2020-12/schema has no such word",
        "You can find the limits at https://platform.openai.com/account/rate-limits.",
        "model `llama-3.3-70b-versatile`: Limit 6000, Used 5900, Requested 900. Please try again in 8.5s.",
        "vLLM 0.11.0: std::bad_alloc at 12:30:45",
        "the backend has none of these: gpt-4o-mini-2024-07-18",
        "'api_key' is no field of a request; gpubox is no role",
    ],
)
def test_what_a_client_can_act_on_stays(said: str) -> None:
    """Not a letter of it changes; a placeholder such as ``none`` is no key, a bare name no address."""
    assert REDACTOR.text(said) == said


def test_an_error_keeps_all_but_its_words() -> None:
    """Class, status, code and the time to wait are the ladder's; the operator's text goes nowhere."""
    error = RateLimited(
        "slow down, http://10.0.0.1", code="c", status=429, retry_after=2.0, internal="at 10.0.0.1"
    )
    clean = REDACTOR.clean(error)
    assert type(clean) is RateLimited
    assert (clean.message, clean.code, clean.retry_after) == (f"slow down, {HIDDEN}", "c", 2.0)
    assert "10.0.0.1" not in clean.internal
    assert REDACTOR.clean(InvalidRequest("no", param=f"a[{KEY}]")).param == f"a[{HIDDEN}]"
    good = ContextLengthExceeded("too long", param="messages")
    assert REDACTOR.clean(good) is good


def test_a_tier_hides_its_own() -> None:
    """Its address and all of its keys; a provider's public address stays."""
    vllm = redactor_of(VllmTier(base_url="http://gpubox:8000/v1", api_key=Secret("vllm-engine-key")))
    assert vllm.text("gpubox:8000 with vllm-engine-key") == f"{HIDDEN} with {HIDDEN}"
    ollama = redactor_of(OllamaTier(base_url="http://nuc.example.org:11434"))
    assert ollama.text("nuc.example.org refused") == f"{HIDDEN} refused"
    cloud = redactor_of(
        CloudTier(provider="openai", api_keys=(Secret("first-key-1"), Secret("second-key-2")))
    )
    assert cloud.text("api.openai.com: first-key-1, second-key-2") == f"api.openai.com: {HIDDEN}, {HIDDEN}"
