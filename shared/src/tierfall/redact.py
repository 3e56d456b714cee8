"""Takes addresses and credentials out of what a backend says, before a client reads it.

Engines and providers quote where they run and which key they were asked with. What a client can act on (which
field is wrong, how many tokens fit) holds neither, so it stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tierfall.address import is_address
from tierfall.config import CloudTier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tierfall.config import Tier
    from tierfall.errors import TierfallError

HIDDEN: Final = "[hidden]"
FRAGMENT_CHARS: Final = 8
"""So many characters of a key in a row are taken for a part of it."""
SECRET_CHARS: Final = 6
"""A shorter key is a placeholder such as ``none``, which is a word of other texts too."""
MAX_CHARS: Final = 4000
"""Of a text that is passed on; what backends say is cut to less before."""

_URL: Final = re.compile(
    r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'`<>()\[\]{},;]*(?:\[[0-9A-Fa-f:.]+\][^\s\"'`<>(){},;]*)?"
)
_HOST_FIELD: Final = re.compile(
    r"\b(host(?:name)?\s*[=:]\s*)[\"'][^\"']*[\"'](,\s*port\s*[=:]\s*\d+)?", re.IGNORECASE
)
"""As urllib3 and others print an endpoint: ``host='gpu7', port=8000``."""
_IPV4: Final = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?(?![\w.]*\w)")
_IPV6: Final = re.compile(
    r"\[?(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]{0,15}(?![\w:])(?:\](?::\d{1,5})?)?"
)
_PRIVATE_NAME: Final = re.compile(
    r"(?<![\w.-])(?:localhost|(?:[A-Za-z0-9_-]+\.)+(?:local|localdomain|localhost|internal|intranet|lan|home|corp|svc)"
    r"(?:\.cluster\.local)?)\.?(?::\d{1,5})(?!\w)"
    r"|(?<![\w.-])(?:[A-Za-z0-9_-]+\.)+(?:local|localdomain|internal|intranet|lan|home\.arpa|svc)(?![\w-])",
    re.IGNORECASE,
)
_PRIVATE_ENDS: Final = (
    ".local",
    ".localdomain",
    ".localhost",
    ".internal",
    ".intranet",
    ".lan",
    ".home",
    ".corp",
    ".svc",
)
_KEY: Final = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk|gsk|xai|pplx|nvapi)[-_][\w*.…-]{2,}[\w*…-]"
    r"|(?:sk|gsk|xai|pplx|nvapi)[-_](?:\.{2,}|…|\*+)[\w-]*"
    r"|(?:[pr]k[-_]|csk-|hf_|r8_|fw_|tgp_|glpat-|gh[opsu]_|github_pat_|org[-_]|proj_)"
    r"(?=[\w-]*[\d*…])[\w*.…-]{2,}[\w*…-]"
    r"|(?:AIza|AKIA|ASIA|ya29\.)[\w*.…-]{4,}"
    r"|eyJ[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?"  # a JSON web token
    r")"
)
"""The beginnings of known providers' keys, whole or with stars or dots in the middle, and of account ids."""
_STARRED: Final = re.compile(r"(?<![\w.-])[\w.-]++\*{3,}[\w*.-]*|\*{3,}+[\w.-]+")
_NAMED: Final = re.compile(
    r"\b((?:api[ _-]?key|access[ _-]?token|secret|password|authorization|bearer)\b[\"']?"
    r"(?:\s+(?:provided|is|was|used|given))?\s*[:=]?\s*(?:(?:bearer|basic)\s+)?[\"'`(]?)"
    r"(?=[\w.+/=~*…-]*[\d*…])([\w.+/=~*…-]{6,})",
    re.IGNORECASE,
)
"""What stands behind the word for a credential, if it has a digit or a star in it."""
_WORD: Final = re.compile(r"[\w+/=~.*…-]{3,}")
_END_SAID: Final = re.compile(
    r"(?:\.{2,}+|…|\*++|\b(?:ending|ends|beginning|starting|starts) (?:in|with) [\"'`]?)([\w-]{3,})"
)


class Redactor:
    """Knows one tier's addresses and keys.

    Args:
        addresses: URLs of backends, which are hidden.
        secrets: Keys that are sent to them.
    """

    def __init__(self, addresses: Iterable[str] = (), secrets: Iterable[str] = ()) -> None:
        hosts = {urlsplit(address).hostname or "" for address in addresses} - {""}
        self._hosts = frozenset(hosts)
        self._secrets = tuple(secret for secret in secrets if len(secret) >= SECRET_CHARS)
        self._fragments = frozenset(
            secret[start : start + FRAGMENT_CHARS]
            for secret in self._secrets
            for start in range(max(1, len(secret) - FRAGMENT_CHARS + 1))
        )
        names = "|".join(re.escape(host) + ("" if "." in host else r":\d{1,5}") for host in sorted(hosts))
        self._own = (
            re.compile(rf"(?<![\w.-])(?:{names})(?::\d{{1,5}})?(?![\w-])", re.IGNORECASE) if names else None
        )

    def clean(self, error: TierfallError) -> TierfallError:
        """The error as a client may read it: itself where there is nothing to hide."""
        message, param, code = self.text(error.message), error.param, error.code
        param, code = param and self.text(param), code and self.text(code)
        if (message, param, code) == (error.message, error.param, error.code):
            return error
        return type(error)(
            message,
            param=param,
            code=code,
            status=error.status,
            retry_after=error.retry_after,
            should_retry=error.should_retry,
        )

    def text(self, text: str) -> str:
        """A text without addresses and credentials."""
        text = text[:MAX_CHARS]
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = _URL.sub(self._url, text)
        text = _HOST_FIELD.sub(rf"\1{HIDDEN}", text)
        if self._own is not None:
            text = self._own.sub(HIDDEN, text)
        text = _PRIVATE_NAME.sub(HIDDEN, text)
        text = _IPV4.sub(_address, text)
        text = _IPV6.sub(_address, text)
        text = _NAMED.sub(rf"\1{HIDDEN}", text)
        text = _KEY.sub(HIDDEN, text)
        text = _STARRED.sub(HIDDEN, text)
        text = _WORD.sub(self._word, text)
        return _END_SAID.sub(self._end, text)

    def _url(self, found: re.Match[str]) -> str:
        """Public pages, which providers name for help, stay."""
        try:
            parts = urlsplit(found.group())
            host = parts.hostname or ""
        except ValueError:
            return HIDDEN
        public = host not in self._hosts and "." in host and not host.endswith(_PRIVATE_ENDS)
        return found.group() if public and not is_address(host) and parts.username is None else HIDDEN

    def _word(self, found: re.Match[str]) -> str:
        word = found.group()
        starts = range(max(1, len(word) - FRAGMENT_CHARS + 1))
        if any(word[start : start + FRAGMENT_CHARS] in self._fragments for start in starts):
            return HIDDEN
        for mark in ("...", "…", ".."):
            head, middle, tail = word.partition(mark)
            tail = tail.lstrip(".")
            if (
                middle
                and head
                and tail
                and any(s.startswith(head) and s.endswith(tail) for s in self._secrets)
            ):
                return HIDDEN
        return word

    def _end(self, found: re.Match[str]) -> str:
        shown = found.group(1)
        if any(secret.startswith(shown) or secret.endswith(shown) for secret in self._secrets):
            return found.group()[: -len(shown)] + HIDDEN
        return found.group()


NOTHING_KNOWN: Final = Redactor()


def redactor_of(tier: Tier) -> Redactor:
    """Hides the tier's keys, and where its backend is unless that is a provider's public address."""
    keys = tier.keys if isinstance(tier, CloudTier) else (getattr(tier, "api_key", None),)
    return Redactor([tier.base_url] if tier.base_url else (), [key.value for key in keys if key])


def _address(found: re.Match[str]) -> str:
    text = found.group()
    bare = text.removeprefix("[").partition("]")[0] if text.startswith("[") else text
    if "." in bare and bare.count(":") == 1:
        bare = bare.partition(":")[0]
    return HIDDEN if is_address(bare) and any(letter.isdigit() for letter in bare) else text
