"""The ladder's story: what each attempt came to, for the headers, the log and the last error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tierfall.errors import (
    BackendFault,
    BodyLost,
    ContextLengthExceeded,
    InvalidRequest,
    ProviderRefused,
    QuotaExhausted,
    RateLimited,
    TierBusy,
    TierfallError,
    WorkerLost,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

RETRY_AFTER_S: Final = 1.0
"""What a client is told to wait when no tier could answer: a worker that starts is noticed that soon."""

_TELLING: Final[tuple[tuple[type[TierfallError], ...], ...]] = (
    (InvalidRequest,),
    (RateLimited, QuotaExhausted, TierBusy),
    (BackendFault, WorkerLost, BodyLost),
    (ProviderRefused,),
)
_POINTLESS: Final = (InvalidRequest, ProviderRefused, QuotaExhausted)
"""Trying again changes nothing: somebody has to act first."""


class Chapter(NamedTuple):
    """One attempt."""

    tier: str
    outcome: str
    """``ok``, or the slug of the error that ended it."""
    took_s: float
    error: TierfallError | None


class Story:
    """All attempts of one request, in order."""

    def __init__(self) -> None:
        self.chapters: list[Chapter] = []
        self.header = ""
        """``x-tierfall-attempts``: ``vllm=no_workers;ollama=ok``."""

    def add(self, tier: str, took_s: float, error: TierfallError | None) -> None:
        """Notes how an attempt ended."""
        outcome = error.slug if error else "ok"
        self.chapters.append(Chapter(tier, outcome, took_s, error and error.detached()))
        self.header = f"{self.header};{tier}={outcome}" if self.header else f"{tier}={outcome}"

    def _errors(self) -> Iterator[TierfallError]:
        """What went wrong; not a rate limit that was waited out, only to find the tier's quota spent."""
        for number, chapter in enumerate(self.chapters):
            waited_out = isinstance(chapter.error, RateLimited) and any(
                later.tier == chapter.tier and isinstance(later.error, QuotaExhausted)
                for later in self.chapters[number + 1 :]
            )
            if chapter.error is not None and not waited_out:
                yield chapter.error

    def verdict(self, model: str) -> TierfallError:
        """The one error of a ladder that came to its end: the most telling one's, with the story."""
        telling = max(self._errors(), key=_weight)
        if isinstance(telling, ContextLengthExceeded) or (
            len(self.chapters) == 1 and isinstance(telling, InvalidRequest)
        ):
            return telling.detached()
        told = "; ".join(
            f"{chapter.tier}: {chapter.error.message} ({chapter.outcome}, {chapter.took_s:.2f} s)"
            for chapter in self.chapters
            if chapter.error is not None
        )
        retry_after = telling.retry_after
        if retry_after is None and telling.status in {429, 503}:
            retry_after = RETRY_AFTER_S
        return type(telling)(
            f"no tier could answer {model!r}. {told}",
            param=telling.param,
            code=telling.code,
            status=telling.status,
            retry_after=retry_after,
            should_retry=False if isinstance(telling, _POINTLESS) else telling.should_retry,
        )


def _weight(error: TierfallError) -> int:
    """Higher tells more: what the client can act on, then what a backend said, then silence, then absence."""
    for place, classes in enumerate(_TELLING):
        if isinstance(error, classes):
            return len(_TELLING) - place + 2
    return 1 if error.status == 504 else 0  # noqa: PLR2004 - a deadline tells more than an absence
