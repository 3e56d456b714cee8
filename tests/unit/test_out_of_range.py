"""Numbers that JSON allows and no parser takes: the ingress lets them pass in what it does not read."""

from __future__ import annotations

import msgspec

from tierfall.worker import Ask
from tierfall.worker.tracing import _asked
from tierfall_worker_vllm.engine import _from_length

NUMBER = msgspec.Raw(b"1e999")


def test_a_span_leaves_it_out() -> None:
    """The request goes on: what the backend says of it counts."""
    members = {"temperature": NUMBER, "n": NUMBER, "reasoning_effort": NUMBER, "top_p": msgspec.Raw(b"0.5")}
    asked = Ask(request_id="r", model="m", backend_model="m", body=members)
    assert _asked(asked) == {"gen_ai.request.top_p": 0.5}


def test_a_prompt_is_counted_by_its_length() -> None:
    """A whole answer must not fail over the estimate of its usage."""
    messages = msgspec.Raw(b'[{"role": "user", "content": [{"type": "x", "weight": 1e999}]}]')
    assert _from_length(messages) > 10
