"""What may be used, counted so that it holds across replicas, restarts and deaths.

An *account* is one JSON document per *scope* (a provider's key, a client's key) in the JetStream key-value
bucket ``tierfall_quota``. It holds what was used in each *limit*'s window. Who is about to use something
*reserves* it first: all limits that apply, or none::

    ledger = Ledger(Bucket(bus, tierfall.store.QUOTA))
    wish = Wish(
        limits=(Limit(Metric.REQUESTS, 60, Window.MINUTE), Limit(Metric.TOKENS, 500_000, Window.DAY)),
        amounts={Metric.REQUESTS: 1, Metric.TOKENS: 900},  # the most that it may come to
        estimates={Metric.TOKENS: 400},  # what it probably is
    )
    grant = await ledger.reserve("client.alice", wish)  # or Spent: which window, retry_after
    ...
    ledger.settle(grant, {Metric.TOKENS: 512})  # what it was; or ledger.refund(grant), if nothing was used

**Exact.** A write names the revision that it was decided on (compare-and-set), so two replicas never decide
on the same one. A write without an answer (the server died, the connection broke) is looked up by the
writer's stamp in the document before anything else is decided. Without JetStream nothing is granted.

**Cheap.** All that one replica reserves and settles in one scope within one turn of its event loop goes into
one write, and while that is under way the next batch gathers. What does not fit is refused from memory.

**When the owner dies.** What it reserved stays counted: requests for good, as they may have been sent; tokens
and cost as the wish's estimate, once ``held_s`` seconds are over.

Days and months begin at midnight of the limit's time zone and are exact. A minute is any 60 seconds, counted
in slices of 2 s that stay counted for up to 64 s.

**Whose time.** NATS's: every replica measures it and counts on from there, so that what its own machine's
clock says does not matter. When NATS's clock itself goes wrong and is set right again, what was used in a day
or month that it comes back to still counts; what was used in the meantime counts in the period that it named.
"""

from tierfall.ledger.account import Account, Bench, pack_account, unpack_account
from tierfall.ledger.booking import Grant, Pace, Wish, Word, check
from tierfall.ledger.ledger import Ledger
from tierfall.ledger.limit import Limit, Metric, Window, zone_of
from tierfall.ledger.spent import Spent, show_wait

__all__ = [
    "Account",
    "Bench",
    "Grant",
    "Ledger",
    "Limit",
    "Metric",
    "Pace",
    "Spent",
    "Window",
    "Wish",
    "Word",
    "check",
    "pack_account",
    "show_wait",
    "unpack_account",
    "zone_of",
]
