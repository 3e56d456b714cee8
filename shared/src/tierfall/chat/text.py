"""The chunks of a text completion: as a chat's, with a ``text`` in the place of a ``delta``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from tierfall.chat.chunk import ChunkStream
from tierfall.chat.weight import utf8_bytes

if TYPE_CHECKING:
    from tierfall.chat.chunk import Choice

_choices: Final = msgspec.json.Decoder(list[dict[str, Any]])
_encoder: Final = msgspec.json.Encoder()


class TextStream(ChunkStream):
    """The chunks of one completion, of one or several prompts; arguments as :class:`ChunkStream`'s."""

    __slots__ = ()

    object_name: ClassVar[str] = "text_completion"

    def _breaks_a_rule(self, choice: Choice) -> bool:
        return (
            choice.index is None
            or not isinstance(choice.text, str)
            or (choice.finish_reason is not None and choice.index in self._finished)
            or choice.finish_reason == ""
            or choice.finish_reason is msgspec.UNSET
        )

    def _text_of(self, choice: Choice) -> Any:
        return choice.text

    def _size_of(self, choice: Choice) -> int:
        return utf8_bytes(choice.text)

    def _has_output(self, choice: Choice) -> bool:
        return isinstance(choice.text, str) and choice.text != ""

    def _mend(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Index and text always, ``finish_reason`` once."""
        choices = _choices.decode(raw)
        for choice in choices:
            index = choice["index"] = choice.get("index") or 0
            text = choice.get("text")
            choice["text"] = text if isinstance(text, str) else ""
            if index in self._finished or not choice.get("finish_reason"):
                choice["finish_reason"] = None
        return msgspec.Raw(_encoder.encode(choices))


def legacy_logprobs(positions: list[dict[str, Any]], offset: int) -> dict[str, list[Any]]:
    """Log probabilities as a text completion has them, from the form that chats have.

    Args:
        positions: A chat's ``logprobs.content``.
        offset: How many characters of the text come before.
    """
    tokens = [str(position["token"]) for position in positions]
    tops = [position.get("top_logprobs") or () for position in positions]
    offsets = [offset + sum(map(len, tokens[:place])) for place in range(len(tokens))]
    return {
        "text_offset": offsets,
        "token_logprobs": [position["logprob"] for position in positions],
        "tokens": tokens,
        "top_logprobs": [{str(each["token"]): each["logprob"] for each in top} for top in tops],
    }
