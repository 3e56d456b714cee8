"""The one error tree: what went wrong, what the client is told, and what the ladder does about it.

    TierfallError                  status  type                   code                     escalate
    ├─ ClientError
    │  ├─ InvalidRequest           400     invalid_request_error  -                        never
    │  │  ├─ UnsupportedByTier     400     invalid_request_error  unsupported_parameter    next
    │  │  │  └─ UnsupportedOperation 400   invalid_request_error  unsupported_operation    next
    │  │  ├─ ContextLengthExceeded 400     invalid_request_error  context_length_exceeded  larger
    │  │  └─ ContentFiltered       400     invalid_request_error  content_filter           never
    │  ├─ KeyRefused               401     invalid_request_error  invalid_api_key          never
    │  ├─ ModelForbidden           403     invalid_request_error  model_not_allowed        never
    │  ├─ HostForbidden            403     invalid_request_error  host_not_allowed         never
    │  ├─ OriginForbidden          403     invalid_request_error  origin_not_allowed       never
    │  ├─ KeyRateLimited           429     rate_limit_error       rate_limit_exceeded      never
    │  ├─ KeyQuotaSpent            429     insufficient_quota     insufficient_quota       never
    │  ├─ NotFound                 404     invalid_request_error  not_found                never
    │  │  └─ ModelNotFound         404     invalid_request_error  model_not_found          never
    │  ├─ MethodNotAllowed         405     invalid_request_error  method_not_allowed       never
    │  ├─ HeadTimeout              408     invalid_request_error  head_timeout             never
    │  ├─ BodyTimeout              408     invalid_request_error  body_timeout             never
    │  ├─ BodyTooLarge             413     invalid_request_error  request_too_large        never
    │  ├─ UnsupportedMediaType     415     invalid_request_error  unsupported_media_type   never
    │  └─ HeadersTooLarge          431     invalid_request_error  headers_too_large        never
    ├─ BackendError
    │  ├─ RateLimited              429     rate_limit_error       rate_limit_exceeded      wait
    │  ├─ QuotaExhausted           429     insufficient_quota     insufficient_quota       next
    │  ├─ QuotaUnknown             503     service_unavailable    quota_unknown            next
    │  ├─ BackendDown              503     service_unavailable    backend_down             next
    │  ├─ BackendFault             502     upstream_error         backend_fault            retry
    │  │  └─ StreamBroken          502     upstream_error         stream_broken            retry
    │  ├─ OutOfFiles               503     service_unavailable    out_of_files             retry
    │  ├─ ContinuationDiverged     502     upstream_error         continuation_diverged    next
    │  └─ ProviderRefused          502     upstream_error         provider_refused         next
    ├─ TierError
    │  ├─ NoWorkers                503     service_unavailable    no_workers               next
    │  ├─ TierBusy                 429     rate_limit_error       tier_busy                busy
    │  ├─ Benched                  503     service_unavailable    benched                  next
    │  ├─ WorkerLost               502     upstream_error         worker_lost              retry
    │  │  └─ Undelivered           503     service_unavailable    undelivered              retry
    │  ├─ BodyLost                 502     upstream_error         body_lost                retry
    │  ├─ Unreadable               503     service_unavailable    unreadable               next
    │  ├─ Stale                    503     service_unavailable    stale                    next
    │  ├─ FirstTokenDeadline       504     timeout_error          first_token_deadline     next
    │  ├─ IdleDeadline             504     timeout_error          idle_deadline            next
    │  ├─ TotalDeadline            504     timeout_error          total_deadline           next
    │  ├─ BudgetSpent              504     timeout_error          budget_spent             never
    │  └─ ClientGone               499     invalid_request_error  client_gone              never
    ├─ BusError
    │  ├─ BusDown                  503     service_unavailable    bus_down                 never
    │  ├─ PayloadTooLarge          413     invalid_request_error  request_too_large        never
    │  ├─ StoreUnavailable         503     service_unavailable    store_unavailable        never
    │  │  └─ StoreUnreadable       503     service_unavailable    store_unavailable        never
    │  └─ Conflict                 409     service_unavailable    conflict                 never
    ├─ GatewayBusy                 503     service_unavailable    gateway_busy             never
    ├─ GatewayStopped           503     service_unavailable    gateway_stopped          never
    ├─ TooManyConnections       503     service_unavailable    too_many_connections     never
    ├─ Internal                    500     api_error              internal_error           never
    └─ ConfigError                 (never on the wire: a config file that cannot be used)

A class's slug (its name in snake case) is its name in ``x-tierfall-attempts``, in metrics and between
processes, so a rename is a change of protocol.
"""

from __future__ import annotations

import enum
import re
from typing import ClassVar, Final, Self

ERROR_CLASSES: Final[dict[str, type[TierfallError]]] = {}
"""Every class of the tree by its slug, for errors that arrive from another process."""


class Escalate(enum.Enum):
    """What the ladder does when an attempt ends like this before its first output."""

    NEVER = "never"
    """Return it to the client as it is."""
    NEXT = "next"
    """Go to the next tier at once."""
    RETRY = "retry"
    """One more try on the same tier if its deadline allows, then the next tier."""
    WAIT = "wait"
    """Wait ``retry_after`` if it fits the tier's deadline and try again, else the next tier."""
    BUSY = "busy"
    """Stand in line for a free slot if the model says so, else the next tier."""
    LARGER = "larger"
    """Only a tier with a larger context window can help."""


class TierfallError(Exception):
    """The root: an error that knows its place in the ladder and on the wire.

    Args:
        message: What happened and what to change, for the client. Never holds prompt text or keys.
        param: The request field at fault, in OpenAI's notation (``messages[3].content``).
        code: Overrides the class's code, for what a provider said more exactly.
        status: Overrides the class's HTTP status, likewise.
        retry_after: Seconds after which another try makes sense.
        should_retry: What ``x-should-retry`` tells the official SDKs; ``None`` leaves it to their defaults.
        internal: The message for the operator, where that has to name an address. It goes to logs and
            heartbeats, never to a client.
    """

    status: int = 500
    type: ClassVar[str] = "api_error"
    code: str | None = None
    escalate: ClassVar[Escalate] = Escalate.NEVER
    slug: ClassVar[str] = "tierfall_error"

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.slug = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        ERROR_CLASSES[cls.slug] = cls

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        internal: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.internal = internal or message
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    def detached(self) -> Self:
        """A copy without traceback, cause and context, to be kept beside a request.

        A traceback holds the frames that the error passed, and these hold the request and its body. Kept by
        the request itself it would be a reference cycle, which stays until the garbage collector runs.
        """
        return type(self)(
            self.message,
            param=self.param,
            code=self.code,
            status=self.status,
            retry_after=self.retry_after,
            should_retry=self.should_retry,
            internal=self.internal,
        )


class ClientError(TierfallError):
    """The request itself is at fault: no tier can mend it."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(ClientError):
    """The body or a parameter is wrong; ``param`` names it where it can be named."""


class UnsupportedByTier(InvalidRequest):
    """This tier's backend has no way to honour ``param``; another tier may."""

    code = "unsupported_parameter"
    escalate = Escalate.NEXT


class UnsupportedOperation(UnsupportedByTier):
    """This tier's backend, or its model, has no such endpoint; the message names the path."""

    code = "unsupported_operation"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit the backend's context window."""

    code = "context_length_exceeded"
    escalate = Escalate.LARGER


class ContentFiltered(InvalidRequest):
    """The provider's content filter refused the prompt."""

    code = "content_filter"


class KeyRefused(ClientError):
    """No API key, or one that this gateway does not know."""

    status = 401
    code = "invalid_api_key"


class ModelForbidden(ClientError):
    """The API key is known, but not for this model."""

    status = 403
    code = "model_not_allowed"


class HostForbidden(ClientError):
    """The request's ``Host`` is a name that a server without keys does not answer to."""

    status = 403
    code = "host_not_allowed"


class OriginForbidden(ClientError):
    """The request comes from a web page that may not use a server without keys."""

    status = 403
    code = "origin_not_allowed"


class KeyRateLimited(ClientError):
    """The API key's own limit by the minute has no room; ``retry_after`` says when it will have."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class KeyQuotaSpent(ClientError):
    """The API key's own limit by the day, month or in total, or its budget, is spent."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class NotFound(ClientError):
    """No such path."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No model of that name is configured."""

    code = "model_not_found"


class MethodNotAllowed(ClientError):
    """The path exists, the method does not; the answer carries ``Allow``."""

    status = 405
    code = "method_not_allowed"


class HeadTimeout(ClientError):
    """The client did not send a whole request head in time."""

    status = 408
    code = "head_timeout"


class BodyTimeout(ClientError):
    """The client stopped sending in the middle of its body."""

    status = 408
    code = "body_timeout"


class BodyTooLarge(ClientError):
    """The body passes ``server.max_body``; decided while reading."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(ClientError):
    """The body's ``Content-Type`` is not JSON."""

    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(ClientError):
    """Request line and headers pass the server's limit."""

    status = 431
    code = "headers_too_large"


class BackendError(TierfallError):
    """A backend failed or refused; raised by workers, sent as an error frame."""

    status = 502
    type = "upstream_error"


class RateLimited(BackendError):
    """The provider said 429; ``retry_after`` is its word if it gave one."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    escalate = Escalate.WAIT


class QuotaExhausted(BackendError):
    """The provider's quota is spent: waiting seconds will not help."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    escalate = Escalate.NEXT


class QuotaUnknown(BackendError):
    """A quota is configured and nobody knows what is left of it, so nothing is sent."""

    status = 503
    type = "service_unavailable"
    code = "quota_unknown"
    escalate = Escalate.NEXT


class BackendDown(BackendError):
    """Connection refused, or the worker marked its backend down."""

    status = 503
    type = "service_unavailable"
    code = "backend_down"
    escalate = Escalate.NEXT


class BackendFault(BackendError):
    """Reset, 500, 502, 503, or an error inside a 200."""

    code = "backend_fault"
    escalate = Escalate.RETRY


class StreamBroken(BackendFault):
    """The backend's stream ended, stalled or garbled before every choice had its ``finish_reason``."""

    code = "stream_broken"


class OutOfFiles(BackendError):
    """The worker may not open another connection to its backend: its own limit, not the backend's fault."""

    status = 503
    type = "service_unavailable"
    code = "out_of_files"
    escalate = Escalate.RETRY


class ContinuationDiverged(BackendError):
    """A broken stream's new answer is not the one that the client has begun to read."""

    code = "continuation_diverged"
    escalate = Escalate.NEXT


class ProviderRefused(BackendError):
    """401, 403 or 404 from the provider: our own misconfiguration, never the caller's."""

    code = "provider_refused"
    escalate = Escalate.NEXT


class TierError(TierfallError):
    """The tier as a whole, not one backend, could not serve the attempt."""

    status = 504
    type = "timeout_error"


class NoWorkers(TierError):
    """Nobody answers on the tier's subject."""

    status = 503
    type = "service_unavailable"
    code = "no_workers"
    escalate = Escalate.NEXT


class TierBusy(TierError):
    """Every worker of the tier has all its slots taken."""

    status = 429
    type = "rate_limit_error"
    code = "tier_busy"
    escalate = Escalate.BUSY


class Benched(TierError):
    """The tier has not answered lately, and another tier is there: it was not asked."""

    status = 503
    type = "service_unavailable"
    code = "benched"
    escalate = Escalate.NEXT


class WorkerLost(TierError):
    """The worker that held the request died, or its frames were lost on the bus."""

    status = 502
    type = "upstream_error"
    code = "worker_lost"
    escalate = Escalate.RETRY


class BodyLost(TierError):
    """A part of the request body did not reach the worker."""

    status = 502
    type = "upstream_error"
    code = "body_lost"
    escalate = Escalate.RETRY


class Undelivered(WorkerLost):
    """The bus failed before any worker accepted the request. This does not count against the tier."""

    status = 503
    type = "service_unavailable"
    code = "undelivered"


class Unreadable(TierError):
    """A worker of another version cannot read the request; another worker or tier may."""

    status = 503
    type = "service_unavailable"
    code = "unreadable"
    escalate = Escalate.NEXT


class Stale(TierError):
    """The request reached a worker so late that its ingress has probably given it up; it was not executed.

    An ingress that still waits for it sends it once more (``fresh`` in the envelope).
    """

    status = 503
    type = "service_unavailable"
    code = "stale"
    escalate = Escalate.NEXT


class FirstTokenDeadline(TierError):
    """No real output within ``deadlines.first_token``."""

    code = "first_token_deadline"
    escalate = Escalate.NEXT


class IdleDeadline(TierError):
    """No further output within ``deadlines.idle``."""

    code = "idle_deadline"
    escalate = Escalate.NEXT


class TotalDeadline(TierError):
    """The attempt ran longer than ``deadlines.total``."""

    code = "total_deadline"
    escalate = Escalate.NEXT


class BudgetSpent(TierError):
    """The request ran longer than ``deadlines.budget`` over its whole ladder."""

    code = "budget_spent"


class ClientGone(TierError):
    """The caller hung up: nobody is left to answer, everything is cancelled."""

    status = 499
    type = "invalid_request_error"
    code = "client_gone"


class BusError(TierfallError):
    """NATS could not carry the message."""

    status = 503
    type = "service_unavailable"


class BusDown(BusError):
    """No connection to NATS at the moment; it heals by itself."""

    code = "bus_down"


class BusUnfit(BusDown):
    """A NATS server that must not or cannot be used: no TLS, a wrong certificate, too small messages."""


class PayloadTooLarge(BusError):
    """A message above the server's ``max_payload``, refused before it is sent."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class StoreUnavailable(BusError):
    """JetStream is not there, does not answer, or refuses what has to be kept in it."""

    code = "store_unavailable"


class StoreUnreadable(StoreUnavailable):
    """A stored document is not what Tierfall writes; trying again does not help, an operator must mend it."""


class StoreSilent(StoreUnavailable):
    """JetStream gave no answer in time: whether it did what was asked is unknown."""


class StoreAbsent(StoreUnavailable):
    """NATS is there and has no JetStream: waiting will not change that."""


class Conflict(BusError):
    """A stored document changed between reading and writing it: read it again. No client ever sees it."""

    status = 409
    code = "conflict"


class GatewayBusy(TierfallError):
    """This process holds as much for other requests as it may: come back, or ask another replica."""

    status = 503
    type = "service_unavailable"
    code = "gateway_busy"


class GatewayStopped(TierfallError):
    """The gateway stops without waiting for this request any longer."""

    status = 503
    type = "service_unavailable"
    code = "gateway_stopped"


class TooManyConnections(TierfallError):
    """The gateway may not have more files open, and none of its connections is idle."""

    status = 503
    type = "service_unavailable"
    code = "too_many_connections"


class Internal(TierfallError):
    """A defect of ours: the log has the traceback, the client has the request id."""

    code = "internal_error"


class ConfigError(TierfallError):
    """A config file that cannot be used; ``message`` names the path in the file and what would be right."""
