"""Calls through a proxy that the environment sets, by requests."""

from __future__ import annotations

from collections.abc import Mapping

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from .calls import Answer


class Proxy:
    """Connections to a proxy, which threads can share."""

    def __init__(self, proxies: dict[str, str], verify: bool | str, kept: int) -> None:
        """Keep at most `kept` idle connections open."""
        self._proxies, self._verify, self._kept_at_most = proxies, verify, kept
        self.forget()

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
        read_timeout: float,
    ) -> Answer:
        """Return the reply to a request. Raises OSError. The timeouts are as in ConnectionPool.ask."""
        request = requests.PreparedRequest()
        request.method, request.url, request.body, request.hooks = method, url, body, {}
        request.headers = CaseInsensitiveDict(headers)
        limits = timeout, read_timeout
        try:
            response = self._adapter.send(request, timeout=limits, verify=self._verify, proxies=self._proxies)
        except requests.Timeout as error:
            raise TimeoutError from error
        return response.status_code, response.headers, response.content  # reading all of it frees the connection

    def forget(self) -> None:
        """Make new connections; after a fork the other process can keep using its own."""
        # Unlike a Session, an adapter is thread-safe and looks up no proxy or cookie, which halves a request's time.
        self._adapter = HTTPAdapter(pool_connections=1, pool_maxsize=self._kept_at_most, max_retries=0)

    def close(self) -> None:
        self._adapter.close()
