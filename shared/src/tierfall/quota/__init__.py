"""The quotas of cloud providers as the config has them, and how they stand in the ledger.

The worker that holds a provider's keys reserves in the ledger right before it asks the provider; the ingress
and the tools only look.
"""

from tierfall.quota.plan import ZONES, Plan, key_label, plan_of, plans, scope_of
from tierfall.quota.refusal import as_error
from tierfall.quota.report import report
from tierfall.quota.standing import KeyStanding, Standing, WindowStanding, standing_of
from tierfall.quota.view import QuotaView

__all__ = [
    "ZONES",
    "KeyStanding",
    "Plan",
    "QuotaView",
    "Standing",
    "WindowStanding",
    "as_error",
    "key_label",
    "plan_of",
    "plans",
    "report",
    "scope_of",
    "standing_of",
]
