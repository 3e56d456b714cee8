"""The only module that speaks NATS; see :class:`Bus`."""

from tierfall.bus.bus import Bus
from tierfall.bus.message import Callback, Message
from tierfall.bus.options import BusCounters, BusOptions
from tierfall.bus.subscription import Subscription

__all__ = ["Bus", "BusCounters", "BusOptions", "Callback", "Message", "Subscription"]
