"""An OpenAI chat request as the body of Ollama's native ``POST /api/chat``.

Every field that changes the answer is translated or refused by name; none is dropped. Fields without a
bearing on it (``user``, ``metadata``, ``store``, ...) and fields that no engine here knows are left out, as
Ollama itself would ignore them. What a request does not say is left to the model's Modelfile. Source:
``ChatRequest`` and ``Options`` in Ollama's ``api/types.go``, as of 0.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tierfall.errors import InvalidRequest, UnsupportedByTier
from tierfall_worker_ollama.fields import take
from tierfall_worker_ollama.messages import native_messages
from tierfall_worker_ollama.shape import native_format, native_think, native_tools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tierfall.config.schema import OllamaTier
    from tierfall.worker.backend import Ask

# OpenAI's and vLLM's names, Ollama's names, and the type that Ollama insists on.
OPTIONS: Final[dict[str, tuple[str, type]]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "typical_p": ("typical_p", float),
    "seed": ("seed", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "repeat_penalty": ("repeat_penalty", float),
    "repetition_penalty": ("repeat_penalty", float),
    "repeat_last_n": ("repeat_last_n", int),
}
# Later names win: max_tokens is the deprecated one.
LIMITS: Final = ("max_tokens", "max_completion_tokens")
OWN_OPTIONS: Final = frozenset(
    {
        *("temperature", "top_k", "top_p", "min_p", "typical_p", "tfs_z", "seed", "stop"),
        *("presence_penalty", "frequency_penalty", "repeat_penalty", "repeat_last_n", "penalize_newline"),
        *("mirostat", "mirostat_eta", "mirostat_tau", "num_keep"),
    }
)
"""Ollama's own options that a request may set: those of sampling. The others are the operator's: a request
with another ``num_ctx`` or ``num_gpu`` makes Ollama load the model again, for every client."""
NUM_PREDICT: Final = "num_predict"
TOP_LOGPROBS_LIMIT: Final = 20

# What Ollama has no way to honour, and the values that ask for nothing.
REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "logit_bias": ({},),
    "audio": (),
    "modalities": (["text"], []),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
    "verbosity": ("medium",),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "echo": (False,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "documents": ([],),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}


NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {}


class NativeRequest(msgspec.Struct, frozen=True):
    """What goes to Ollama, and what the answer is held against.

    Attributes:
        payload: The JSON body.
        image: The place of the first image, empty without one: Ollama drops images for a model without eyes.
        logprobs: Whether the answer must carry log probabilities: versions before 0.12.11 ignore the wish.
    """

    payload: bytes
    image: str
    logprobs: bool


def native_request(ask: Ask, tier: OllamaTier) -> NativeRequest:
    """Translates one request; pure, no I/O.

    Raises:
        InvalidRequest: A field has a wrong type or value; ``param`` names it.
        UnsupportedByTier: Ollama cannot do what a field asks for; ``param`` names it.
    """
    refuse(ask)
    messages = native_messages(ask.body)
    logprobs, top_logprobs = _logprobs(ask)
    native: dict[str, Any] = {
        "model": ask.backend_model,
        "messages": messages.native,
        "stream": True,
        # By default Ollama cuts a prompt that is too long, and forgets the beginning of an answer that is,
        # both without a word. An error lets the ladder look for a larger window instead.
        "truncate": flag(ask, "truncate"),
        "shift": flag(ask, "shift"),
        "options": native_options(ask, tier),
    }
    optional = {
        "tools": native_tools(ask.body),
        "format": native_format(ask.body),
        "think": native_think(ask.body),
        "keep_alive": keep_alive(ask, tier),
        "logprobs": logprobs or None,
        "top_logprobs": top_logprobs,
    }
    native |= {name: value for name, value in optional.items() if value is not None}
    return NativeRequest(msgspec.json.encode(native), messages.image, logprobs)


def refuse(ask: Ask, further: Mapping[str, tuple[Any, ...]] = NOTHING) -> None:
    """Refuses what Ollama cannot honour.

    Args:
        ask: The request.
        further: As :data:`REFUSED`, in addition to it.

    Raises:
        UnsupportedByTier: ``param`` names the field.
    """
    for name, harmless in (*REFUSED.items(), *further.items()):
        value = take(ask.body, name, Any)
        if value is not None and value not in harmless:
            raise UnsupportedByTier(f"{name}: Ollama has no such setting", param=name)
    if take(ask.body, "parallel_tool_calls", bool) is False and take(ask.body, "tools", list[msgspec.Raw]):
        raise UnsupportedByTier(
            "parallel_tool_calls: Ollama cannot hold a model to one call", param="parallel_tool_calls"
        )


def flag(ask: Ask, name: str) -> bool:
    """A field that is true or false, and false when it is missing."""
    return bool(take(ask.body, name, bool))


def native_options(ask: Ask, tier: OllamaTier) -> dict[str, Any]:
    """The tier's, then what OpenAI's fields say, then the request's own ``options`` of sampling.

    Raises:
        InvalidRequest: A field has a wrong type or value; ``param`` names it.
        UnsupportedByTier: One of the ``options`` is the operator's; ``param`` names it.
    """
    options: dict[str, Any] = {} if tier.num_ctx is None else {"num_ctx": tier.num_ctx}
    for name, (option, kind) in OPTIONS.items():
        value = take(ask.body, name, kind)
        if value is not None:
            options[option] = value
    for name in LIMITS:
        limit = take(ask.body, name, int)
        if limit is None:
            continue
        if limit < 1:
            # Ollama reads a negative number as "for ever".
            raise InvalidRequest(f"{name}: at least 1, not {limit}", param=name)
        options[NUM_PREDICT] = limit
    stop = take(ask.body, "stop", str | list[str])
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    return options | _own_options(ask, tier)


def _own_options(ask: Ask, tier: OllamaTier) -> dict[str, Any]:
    own: dict[str, Any] = take(ask.body, "options", dict[str, Any]) or {}
    own.pop(NUM_PREDICT, None)  # the ingress has read it: it stands in max_tokens
    if tier.num_ctx is not None and own.get("num_ctx") == tier.num_ctx:
        del own["num_ctx"]
    for name in own:
        if name not in OWN_OPTIONS:
            param = f"options.{name}"
            setting = "; tiers.NAME.num_ctx sets it" if name == "num_ctx" else ""
            raise UnsupportedByTier(
                f"{param}: only options of sampling may come with a request{setting}", param=param
            )
    return own


def _logprobs(ask: Ask) -> tuple[bool, int | None]:
    wanted = bool(take(ask.body, "logprobs", bool))
    top = take(ask.body, "top_logprobs", int)
    if top is None:
        return wanted, None
    if not 0 <= top <= TOP_LOGPROBS_LIMIT:
        raise InvalidRequest(f"top_logprobs: 0 to {TOP_LOGPROBS_LIMIT}, not {top}", param="top_logprobs")
    if top and not wanted:
        raise InvalidRequest("top_logprobs: needs logprobs: true", param="top_logprobs")
    return wanted, top


def keep_alive(ask: Ask, tier: OllamaTier) -> str | float | None:
    """How long Ollama keeps the model in memory: what the tier says. A request may only say the same.

    Raises:
        UnsupportedByTier: It says something else: that would hold the memory, or unload the model, for all.
    """
    wished: str | float | None = take(ask.body, "keep_alive", str | float)
    keep = _duration(tier.keep_alive)
    if wished is not None and _duration(wished) != keep:
        raise UnsupportedByTier(
            "keep_alive: it may not come with a request; tiers.NAME.keep_alive sets it", param="keep_alive"
        )
    return keep


def _duration(text: str | float) -> str | float | None:
    """A bare number goes out as a number: Ollama refuses ``"-1"`` for want of a unit, and takes ``-1``."""
    try:
        return float(text)
    except ValueError:
        return text or None
