"""What the chunks of one answer have in common, byte for byte, around the part that differs."""

from __future__ import annotations

from typing import NamedTuple, Self


class Frame(NamedTuple):
    """The bytes around a part of a chunk, as it came and as it leaves.

    The part is one JSON value, and the chunk that the frame was taken from was whole and valid JSON. So
    whatever valid value of that type stands between the same bytes again, the chunk around it is valid.
    """

    head: bytes
    tail: bytes
    our_head: bytes
    our_tail: bytes

    @classmethod
    def around(cls, part: bytes, payload: bytes, chunk: bytes) -> Self | None:
        """The frame of this part; None unless it stands in both just once.

        Args:
            part: A JSON value's text; whether it is that value's that was found is for the caller to see.
            payload: The chunk as it came.
            chunk: The same as it leaves.
        """
        if payload.count(part) != 1 or chunk.count(part) != 1:
            return None
        head, _, tail = payload.partition(part)
        our_head, _, our_tail = chunk.partition(part)
        return cls(head, tail, our_head, our_tail)

    def part(self, payload: bytes) -> bytes:
        """What stands there in another chunk; empty when that is framed otherwise."""
        head, tail = self.head, self.tail
        if payload.startswith(head) and payload.endswith(tail):
            return payload[len(head) : len(payload) - len(tail)]
        return b""

    def framed(self, part: bytes) -> bytes:
        """The chunk that leaves, with this part in it."""
        return self.our_head + part + self.our_tail
