"""IP addresses among host names."""

from __future__ import annotations

import ipaddress


def is_address(host: str) -> bool:
    """Whether ``host``, without brackets, is an IPv4 or IPv6 address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
