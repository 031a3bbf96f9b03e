"""An LLM behind HTTP: any OpenAI-compatible /chat/completions endpoint, with retries."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from emuedit.models.language_model import TEMPERATURE, TOP_P, LLMError, Message

if TYPE_CHECKING:
    from emuedit.models.constrained_decoding import Schema

RETRIED_STATUS = {408, 409, 429, 500, 502, 503, 504}
LONGEST_WAIT_S = 60.0


class OpenAILLM:
    """A model behind `base_url` (such as https://api.openai.com/v1 or http://localhost:8000/v1).

    The API key is read from the environment variable `key_env` at each call; if it is not set, no Authorization header
    is sent. Status codes 408, 409, 429 and 5xx, lost connections and timeouts are retried at most `retries` times,
    after backoff_s, 2 backoff_s, 4 backoff_s, ... or the time of the Retry-After header, never more than a minute.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        retries: int = 5,
        backoff_s: float = 1.0,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must be http(s)://host/v1, got {base_url!r}")
        self.url, self.model, self.key_env = base_url.rstrip("/") + "/chat/completions", model, key_env
        self.timeout_s, self.retries, self.backoff_s = timeout_s, retries, backoff_s

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
        schema: Schema | None = None,
    ) -> str:
        """See `LLM.write`. The schema is sent as `response_format`, which not every server supports."""
        payload: dict[str, Any] = {
            "model": self.model, "messages": messages, "seed": seed, "temperature": temperature, "top_p": top_p,
        }  # fmt: skip
        if schema is not None:
            form = {"name": "answer", "schema": schema, "strict": True}
            payload["response_format"] = {"type": "json_schema", "json_schema": form}
        body = json.dumps(payload).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._request(body)
            except urllib.error.HTTPError as error:
                answer = error.read(2000).decode(errors="replace")
                if error.code not in RETRIED_STATUS or attempt == self.retries:
                    hint = "; if it knows no response_format, ask without a schema" if schema and error.code in (400, 422) else ""
                    raise LLMError(f"{self.url} answered {error.code} for {self.model!r}: {answer}{hint}") from error
                wait = _retry_after_s(error.headers.get("Retry-After"))
            except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
                if attempt == self.retries:
                    raise LLMError(f"{self.url} did not answer in {attempt + 1} attempts: {error}") from error
                wait = None
            time.sleep(min(LONGEST_WAIT_S, self.backoff_s * 2**attempt if wait is None else wait))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _request(self, body: bytes) -> str:
        """Send one request and return the text of its first choice; half of a surrogate pair becomes a question mark."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, data=body, headers=headers)  # noqa: S310 - scheme is checked
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:  # noqa: S310 - as above
            answer = response.read()
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise LLMError(f"want a chat completion from {self.url}, got {answer[:500]!r}") from error
        if not isinstance(text, str):
            raise LLMError(f"want a text from {self.model!r} at {self.url}, got {answer[:500]!r}")
        return text.encode("utf-8", "replace").decode()


def _retry_after_s(header: str | None) -> float | None:
    """The seconds of a Retry-After header, or None where it is missing or a date; the back-off is then used."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
