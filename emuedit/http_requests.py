"""What the HTTP clients share: a name, no proxy for this machine, and redirects that are not followed, so that a payload, an
account or an API key reaches only the server asked."""

import os
import urllib.request
from email.message import Message
from typing import Any
from urllib.parse import urljoin, urlsplit

USER_AGENT = {"User-Agent": "emuedit"}
"""Header of all requests: Cloudflare refuses that of urllib."""

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(url: str) -> bool:
    """Whether a URL is of this machine, so that requests need no proxy."""
    host = urlsplit(url).hostname or ""
    return host in _LOCAL_NAMES or host.startswith("127.")


def no_proxy_variables() -> dict[str, str]:
    """NO_PROXY and no_proxy with the names of this machine added, for processes that use its servers; empty without a proxy."""
    if not urllib.request.getproxies_environment():
        return {}  # on macOS, even NO_PROXY alone would replace the proxies of the system's settings
    names = ("NO_PROXY", "no_proxy")
    words = [word.strip() for name in names for word in os.environ.get(name, "").split(",")]
    bypassed = "*" if "*" in words else ",".join(dict.fromkeys(filter(None, (*words, *_LOCAL_NAMES))))
    return dict.fromkeys(names, bypassed)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Handler for `urllib.request.build_opener` that leaves a redirect an HTTPError.

    urllib would send a redirected POST as a GET without its payload, and the header Authorization to any other server.
    """

    def redirect_request(self, *_: Any) -> None:
        """No request."""


def target(url: str, status: int, headers: Message) -> str:
    """The absolute address to which the answer of `url` redirects; empty if it does not."""
    location = headers.get("Location") if 300 <= status < 400 else None
    return urljoin(url, location) if location else ""
