"""An LLM behind HTTP: any OpenAI-compatible /chat/completions endpoint, with retries."""

from __future__ import annotations

import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from emuedit import http_requests
from emuedit.config import Params
from emuedit.models.chat_completion import FILTERED, NoCompletionError, text_of
from emuedit.models.language_model import (
    TEMPERATURE,
    TOP_P,
    LLMError,
    LLMRefusalError,
    Message,
    has_system_message,
    merge_system_message,
)
from emuedit.runtime import seed_for

if TYPE_CHECKING:
    from emuedit.models.constrained_decoding import Schema

_RETRIED_STATUS = {408, 409, 425, 429}
"""Retried like all from 500 on, among which are Cloudflare's 520 to 530 and 529, of an overloaded server."""
_TIMEOUT_STATUS = {408, 504, 522, 524}
LONGEST_WAIT_S = 60.0
_N_SEEDS = 2**31  # Gemini's endpoint takes seeds of 32 bits with a sign
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""The field for the longest answer. OpenAI's models since o1 answer 400 to the first name, and name the second. It is not the
first choice, because other servers, such as Ollama, ignore it without an error."""
_NO_SYSTEM_ROLE = re.compile(r"system role|roles must alternate", re.IGNORECASE)
"""In the body of an error: the chat template, such as that of Gemma 2 or Mistral 7B 0.2, takes no message of the system."""
_SETTING_OF_FIELD = {
    "response_format": "constrained_decoding: false",
    "temperature": "temperature: null",
    "top_p": "top_p: null",
    "seed": "endpoint: {send_seed: false}",
    _LIMIT: "endpoint: {max_tokens: null}",
    _NEW_LIMIT: "endpoint: {max_tokens: null}",
}
"""Fields of a request that not every endpoint knows -> the setting in `params.yaml`, `instructions`, that leaves it out."""


class EndpointSettings(Params):
    """How an endpoint is asked. Limits and retries change only answers that take too long."""

    timeout_s: float = Field(60.0, gt=0)
    """Longest time in which the endpoint sends nothing; more for a reasoning model, which thinks before it answers."""
    retries: int = Field(5, ge=0, le=100)
    """How often a request is sent again after 408, 409, 425, 429, 5xx, a lost connection, an answer that the server stopped, or a
    timeout; after a timeout with another seed, since an answer that runs on would take as long again."""
    max_tokens: int | None = Field(1024, ge=1)
    """Longest answer in tokens, several times that of a usable one; the thoughts of a reasoning model count, too. null: not
    sent, for endpoints that do not know the field and for reasoning models."""
    send_seed: bool = True
    """Send the question's seed, of 31 bits; false for endpoints that do not know `seed`, which then answer at random."""


class OpenAILLM:
    """A model behind `base_url` (such as https://api.openai.com/v1 or http://localhost:8000/v1).

    The address may end in /chat/completions and have a query (Azure's `?api-version=...`). Redirects are not followed.

    The API key is read from the environment variable `key_env` at each call; if it is not set, no Authorization header
    is sent. Retry n = 0, 1, ... waits for the seconds of the Retry-After header, if there is one, and a random time of at most
    2^n backoff_s, so that questions that failed together do not come back together; never more than a minute. The random
    time follows from the question's seed. A server that takes the limit of tokens under its other name is asked with that, and
    a model without a system role gets the system text in the first message of the user.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        settings: EndpointSettings | None = None,
        *,
        key_env: str = "OPENAI_API_KEY",
        backoff_s: float = 1.0,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"want a base_url such as https://host/v1, got {base_url!r}")
        self.url, self.model, self.key_env = _completions_url(base_url), model, key_env
        self.settings, self.backoff_s = settings or EndpointSettings(), backoff_s
        self._limit_name = _LIMIT
        self._has_system_role = True
        self._opener = urllib.request.build_opener(http_requests.NoRedirects)

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float | None = TEMPERATURE,
        top_p: float | None = TOP_P,
        schema: Schema | None = None,
    ) -> str:
        """See `LLM.write`. The schema is sent as `response_format`, which not every server supports, without its patterns."""
        payload: dict[str, Any] = {"model": self.model}
        sampling = {"temperature": temperature, "top_p": top_p}
        payload |= {name: value for name, value in sampling.items() if value is not None}
        if schema is not None:
            form = {"name": "answer", "schema": _without_patterns(schema), "strict": True}
            payload["response_format"] = {"type": "json_schema", "json_schema": form}
        jitter = random.Random(seed)
        attempt = n_timeouts = 0
        while True:
            is_last = attempt == self.settings.retries
            retry_after_s = 0.0
            request = payload | self._messages_field(messages) | self._seed_field(seed, n_timeouts) | self._limit_field()
            try:
                return self._request(request)
            except urllib.error.HTTPError as error:
                body = _read_body(error)
                if error.code in (400, 403) and FILTERED.search(body):
                    raise LLMRefusalError(f"refused by the content filter of {self.url}: {body}") from error
                if error.code == 400 and _LIMIT in request and _NEW_LIMIT in body:
                    self._limit_name = _NEW_LIMIT
                    continue
                if _NO_SYSTEM_ROLE.search(body) and has_system_message(request["messages"]):
                    self._has_system_role = False
                    continue
                if is_last or (error.code not in _RETRIED_STATUS and error.code < HTTPStatus.INTERNAL_SERVER_ERROR):
                    hint = _status_hint(error, request)
                    raise LLMError(f"{self.url} answered {error.code} for {self.model!r}: {body}{hint}") from error
                n_timeouts += error.code in _TIMEOUT_STATUS
                retry_after_s = _retry_after_s(error.headers.get("Retry-After"))
            except (OSError, HTTPException, NoCompletionError) as error:  # of TLS or routing, too, while the answer is read
                is_timeout = isinstance(getattr(error, "reason", error), TimeoutError)
                if is_last:
                    hint = _timeout_hint(self.settings.timeout_s) if is_timeout else ""
                    raise LLMError(f"{self.url} did not answer in {attempt + 1} attempts: {error}{hint}") from error
                n_timeouts += is_timeout
            time.sleep(min(LONGEST_WAIT_S, retry_after_s + jitter.uniform(0, self.backoff_s * 2**attempt)))
            attempt += 1

    def _messages_field(self, messages: list[Message]) -> dict[str, list[Message]]:
        return {"messages": messages if self._has_system_role else merge_system_message(messages)}

    def _seed_field(self, seed: int, n_timeouts: int) -> dict[str, int]:
        """The question's seed; after n timeouts another one, which follows from it and n."""
        if not self.settings.send_seed:
            return {}
        return {"seed": (seed_for("openai_llm", seed, n_timeouts) if n_timeouts else seed) % _N_SEEDS}

    def _limit_field(self) -> dict[str, int]:
        return {} if self.settings.max_tokens is None else {self._limit_name: self.settings.max_tokens}

    def _request(self, payload: dict[str, Any]) -> str:
        """Send one request and return the text of its first choice, see `text_of`."""
        headers = {"Content-Type": "application/json"} | http_requests.USER_AGENT | self._key_header()
        data = json.dumps(payload).encode()
        request = urllib.request.Request(self.url, data=data, headers=headers)  # noqa: S310 - scheme is checked
        with self._opener.open(request, timeout=self.settings.timeout_s) as response:
            body: bytes = response.read()
        return text_of(body)

    def _key_header(self) -> dict[str, str]:
        """The header with the API key. A line end after the key, as in a file of a secret, is removed."""
        key = os.environ.get(self.key_env, "").strip()
        if re.search(r"[^!-~]", key):
            raise LLMError(
                f"want an API key of visible ASCII characters in {self.key_env}, got one with white space or other characters; "
                "copy the key again"
            )
        return {"Authorization": f"Bearer {key}"} if key else {}


def _completions_url(base_url: str) -> str:
    """The address of the chat completions below `base_url`, whose query is kept."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit(parts._replace(path=f"{path}/chat/completions"))


def _without_patterns(schema: Any) -> Any:
    """A JSON Schema that endpoints accept: llama.cpp, Ollama and OpenAI refuse requests with some or all patterns, and Gemini an
    `enum` with an empty text."""
    if isinstance(schema, dict):
        return {key: _without_patterns(value) for key, value in schema.items() if not _is_refused(key, value)}
    return [_without_patterns(value) for value in schema] if isinstance(schema, list) else schema


def _is_refused(keyword: str, value: Any) -> bool:
    return (keyword == "pattern" and isinstance(value, str)) or (keyword == "enum" and value == [""])


def _status_hint(error: urllib.error.HTTPError, payload: dict[str, Any]) -> str:
    """What to do about an endpoint that answers this request with this error."""
    if address := http_requests.target(error.geturl(), error.code, error.headers):
        return f"; it redirects to {address}; use that address in world.llm of params.yaml"
    if error.code == HTTPStatus.NOT_FOUND:
        return "; does the address in world.llm of params.yaml end in /v1, and is the model's name right?"
    if error.code == HTTPStatus.TOO_MANY_REQUESTS:
        return "; lower instructions.concurrency in params.yaml, or set instructions.endpoint: {retries: ...} higher"
    return _fields_hint(payload) if error.code in (400, 422, 500) else ""


def _timeout_hint(timeout_s: float) -> str:
    return (
        f"; if it needs more than {timeout_s:g} s, set instructions.endpoint: {{timeout_s: ...}} higher in params.yaml, or lower "
        "instructions.concurrency"
    )


def _fields_hint(payload: dict[str, Any]) -> str:
    """What to set in `params.yaml` for an endpoint that does not take a field of this request."""
    settings = ", ".join(setting for name, setting in _SETTING_OF_FIELD.items() if name in payload)
    return f"; if it does not take a field of the request, leave it out in params.yaml, section instructions: {settings}"


def _read_body(error: urllib.error.HTTPError) -> str:
    """The beginning of the body of an error; the connection may be lost before it comes."""
    try:
        return error.read(2000).decode(errors="replace")
    except (OSError, HTTPException) as failure:
        return f"(no body: {failure})"


def _retry_after_s(header: str | None) -> float:
    """The seconds of a Retry-After header, or 0 where it is missing or a date."""
    try:
        return max(0.0, float(header)) if header else 0.0
    except ValueError:
        return 0.0
