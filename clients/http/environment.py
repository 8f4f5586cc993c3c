"""Settings of the environment for all programs: proxies and certificates. requests reads them."""

from __future__ import annotations

import requests
from requests.utils import select_proxy


def proxies_and_verify(url: str, verify: bool | str) -> tuple[dict[str, str], bool | str]:
    """Return the proxies for a URL, none if it is reached without one, and what `verify` becomes."""
    found = requests.Session().merge_environment_settings(url, {}, None, verify, None)
    return dict(found["proxies"]) if select_proxy(url, found["proxies"]) else {}, found["verify"]
