"""What the HTTP clients share: a name, and redirects that are not followed, so that a payload, an account or an API key reaches
only the server asked."""

import urllib.request
from email.message import Message
from typing import Any
from urllib.parse import urljoin

USER_AGENT = {"User-Agent": "emuedit"}
"""Header of all requests: Cloudflare refuses that of urllib."""


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
