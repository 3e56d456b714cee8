"""Every parameter of OpenAI's API on its way to each provider: in a form that it takes, or refused."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.parameters import MESSAGES, RANGE, REQUIRED
from fakes.strict import SCHEMAS, StrictProvider, objection
from tierfall.config import CloudTier, Secret
from tierfall.errors import UnsupportedByTier, UnsupportedOperation
from tierfall.protocol.operation import Operation
from tierfall.worker import Ask, Progress
from tierfall_worker_cloud import PROVIDERS, CloudBackend
from tierfall_worker_cloud.providers import provider_for
from tierfall_worker_cloud.request import shape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CASES: Final = [
    (provider, operation, field, value)
    for provider in sorted(PROVIDERS)
    for operation, fields in RANGE.items()
    for field, values in fields.items()
    for value in values
]


def raw(members: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """A body as the runtime hands it over."""
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in members.items()}


def asking(operation: Operation, members: dict[str, Any]) -> Ask:
    """Likewise, the request."""
    return Ask(request_id="r", model="m", backend_model="their-name", body=raw(members), operation=operation)


@contextlib.asynccontextmanager
async def started(name: str) -> AsyncIterator[tuple[StrictProvider, CloudBackend]]:
    """A strict provider, and the worker's backend for it."""
    async with StrictProvider(name) as provider:
        tier = CloudTier(provider=name, base_url=provider.base_url, api_key=Secret("sk-x"))
        backend = CloudBackend("t", tier, provider_for("t", tier))
        await backend.start()
        try:
            yield provider, backend
        finally:
            await backend.close()


async def refusal(backend: CloudBackend, ask: Ask) -> UnsupportedByTier | None:
    """Why the request was not sent; None when it was, and answered."""
    run = {
        Operation.CHAT: backend.chat,
        Operation.COMPLETIONS: backend.complete,
        Operation.EMBEDDINGS: backend.embed,
    }
    try:
        assert [item async for item in run[ask.operation](ask) if not isinstance(item, Progress)]
    except UnsupportedByTier as error:
        return error
    return None


@pytest.mark.parametrize("name", sorted(PROVIDERS))
async def test_each_parameter_is_taken_or_refused_by_name(name: str) -> None:
    """A strict provider never objects; what it would object to was never sent, and the field is named."""
    async with started(name) as (provider, backend):
        for _, operation, field, value in [case for case in CASES if case[0] == name]:
            sent = len(provider.requests)
            refused = await refusal(backend, asking(operation, {**REQUIRED[operation], field: value}))
            assert not provider.objections, (operation, field, value, provider.objections)
            assert len(provider.requests) == sent + (refused is None)
            if operation not in SCHEMAS[name]:
                assert isinstance(refused, UnsupportedOperation)
            elif refused is not None:
                assert (refused.param or "").startswith(field), (field, value, refused.param)
        assert provider.requests


def fits(provider: str, operation: Operation, members: dict[str, Any]) -> dict[str, Any] | None:
    """What is sent for a request, judged; None when it is refused here."""
    try:
        sent: dict[str, Any] = json.loads(shape(PROVIDERS[provider], raw(members), "m", operation))
    except UnsupportedByTier:
        return None
    assert objection(provider, operation, sent) == ""
    return sent


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_parameters_together(data: st.DataObject) -> None:
    """Any choice of them at once, to any provider: never a request that it would refuse."""
    provider = data.draw(st.sampled_from(sorted(PROVIDERS)))
    operation = data.draw(st.sampled_from(list(SCHEMAS[provider])))
    known = RANGE[operation]
    fields = data.draw(st.sets(st.sampled_from(sorted(known)), max_size=8))
    members = {field: data.draw(st.sampled_from(known[field])) for field in sorted(fields)}
    fits(provider, operation, {**REQUIRED[operation], **members})


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_null_says_nothing(name: str) -> None:
    """A null travels to no provider: not every field may be null everywhere."""
    nulls = dict.fromkeys(set(RANGE[Operation.CHAT]) - {"messages"})
    sent = fits(name, Operation.CHAT, {**REQUIRED[Operation.CHAT], **nulls})
    assert sent is not None
    assert None not in sent.values()


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_an_answer_can_be_sent_back(name: str) -> None:
    """What SDKs echo of an answer as the next turn's history is no reason to refuse."""
    for kind in ("echoed", "tools", "developer", "plain"):
        members = {**REQUIRED[Operation.CHAT], "messages": MESSAGES[kind]}
        assert fits(name, Operation.CHAT, members) is not None, kind


@pytest.mark.parametrize("name", ["groq", "gemini", "mistral"])
@pytest.mark.parametrize(
    ("kind", "param"),
    [("file", "messages[0].content[0].type"), ("spoken", "messages[1].audio")],
)
def test_what_a_message_cannot_hold_is_named(name: str, kind: str, param: str) -> None:
    """With its place in the request."""
    with pytest.raises(UnsupportedByTier) as refused:
        shape(PROVIDERS[name], raw({"model": "m", "messages": MESSAGES[kind]}), "m")
    assert refused.value.param == param


def test_the_strict_provider_is_strict() -> None:
    """It objects to what each provider is known to refuse: no test here passes because it takes anything."""
    chat = REQUIRED[Operation.CHAT]
    known: list[tuple[str, dict[str, Any]]] = [
        ("openai", {"top_k": 5}),
        ("openai", {"tools": None}),
        ("groq", {"verbosity": "low"}),
        ("groq", {"logprobs": True}),
        ("groq", {"messages": [{"role": "user", "name": "ann", "content": "x"}]}),
        ("groq", {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "y"}]}),
        ("gemini", {"seed": 1}),
        ("gemini", {"frequency_penalty": 1}),
        ("mistral", {"seed": 1}),
        ("mistral", {"stream_options": {}}),
        ("mistral", {"messages": [{"role": "developer", "content": "x"}]}),
    ]
    for name, members in known:
        assert objection(name, Operation.CHAT, {**chat, **members}), (name, members)
        assert not objection(name, Operation.CHAT, chat)
    assert objection(
        "gemini", Operation.EMBEDDINGS, {"model": "m", "input": "x", "encoding_format": "base64"}
    )
    assert objection("mistral", Operation.EMBEDDINGS, {"model": "m", "input": [1, 2]})
