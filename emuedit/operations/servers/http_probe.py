"""Query a server over HTTP, without a proxy for this machine."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from emuedit import http_requests
from emuedit.tracking.service_errors import hide_password


@dataclass(frozen=True)
class Answer:
    """Answer of a server: status (0: no answer), body, and headers in lower case."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    error: str = ""
    """Why there is no answer, or that it is a redirect and to which address."""
    location: str = ""
    """The address to which the server redirects, whether that was followed or not; empty without a redirect."""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def problem(self) -> str:
        """The error, or else the status, for messages about an answer that is no success."""
        return self.error or f"status {self.status}"

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.body)


def ask(url: str, timeout_s: float, payload: Any = None, account: str = "") -> Answer:
    """GET a URL, or POST `payload` as JSON; `account`: `name:password`, for basic authentication; it may also be in the URL.

    A redirect is followed only without a payload and an account: a POST would become a GET, and another server get the password.
    Does not raise for missing answers or error statuses. Raises ValueError for a URL that is not HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"want an http:// or https:// URL, got {hide_password(url)!r}")
    if "@" in parts.netloc:  # urllib would treat it as part of the host name
        user, _, host = parts.netloc.rpartition("@")
        url, account = urlunsplit(parts._replace(netloc=host)), unquote(user if ":" in user else f"{user}:")
    data = None if payload is None else json.dumps(payload).encode()
    headers = {"Content-Type": "application/json"} | http_requests.USER_AGENT
    if account:
        headers["Authorization"] = f"Basic {base64.b64encode(account.encode()).decode()}"
    request = urllib.request.Request(url, data, headers)  # noqa: S310  the scheme is checked above
    handlers: list[urllib.request.BaseHandler] = []
    if http_requests.is_local(url):
        handlers.append(urllib.request.ProxyHandler({}))
    if data is not None or account:
        handlers.append(http_requests.NoRedirects())
    try:
        try:
            response = urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return _read(response, request.full_url)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, error=str(getattr(error, "reason", error)))


def _read(response: Any, url: str) -> Answer:
    """The answer to a request of `url`: a response of urllib, or the HTTPError that it raised instead."""
    place = response.geturl()
    target = http_requests.target(place, response.status, response.headers)
    problem = f"it redirects to {hide_password(target)}; use that address" if target else ""
    location = target or ("" if place == url else place)
    headers = tuple((name.lower(), value) for name, value in response.headers.items())
    return Answer(response.status, response.read(), headers, problem, location)
