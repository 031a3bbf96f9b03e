"""A llm behind HTTP: any OpenAI-compatible /chat/completions endpoint, with patience for a busy one."""

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

RETRIED = {408, 409, 429, 500, 502, 503, 504}
LONGEST_WAIT_S = 60.0


class OpenAILLM:
    """A model behind `base_url` (such as https://api.openai.com/v1 or http://localhost:8000/v1).

    The key is read from the environment variable `key_env` at each call; without one no Authorization is sent.
    Busy answers (429, 5xx), lost connections and timeouts are tried again after backoff_s, 2 backoff_s, 4 backoff_s, ...
    or what Retry-After asks, at most `retries` times.
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
        """The endpoint's answer; LLMError when it refuses or stays away.

        With `schema` the endpoint is asked to hold the model to it (`response_format`, which not every server knows).
        """
        asked: dict[str, Any] = {
            "model": self.model, "messages": messages, "seed": seed, "temperature": temperature, "top_p": top_p,
        }  # fmt: skip
        if schema is not None:
            form = {"name": "answer", "schema": schema, "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        body = json.dumps(asked).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._ask(body)
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode(errors="replace")
                if error.code not in RETRIED or attempt == self.retries:
                    hint = "; if it knows no response_format, ask without a schema" if schema and error.code in (400, 422) else ""
                    raise LLMError(f"{self.url} answered {error.code} for {self.model!r}: {said}{hint}") from error
                wait = _retry_after(error.headers.get("Retry-After"))
            except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
                if attempt == self.retries:
                    raise LLMError(f"{self.url} did not answer in {attempt + 1} attempts: {error}") from error
                wait = None
            time.sleep(min(LONGEST_WAIT_S, self.backoff_s * 2**attempt if wait is None else wait))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _ask(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, data=body, headers=headers)  # noqa: S310 - the scheme is checked at the start
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:  # noqa: S310 - as above
            answer = response.read()
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise LLMError(f"want a chat completion from {self.url}, got {answer[:500]!r}") from error
        if not isinstance(text, str):
            raise LLMError(f"want a text from {self.model!r} at {self.url}, got {answer[:500]!r}")
        return text


def _retry_after(header: str | None) -> float | None:
    """Seconds asked for, where the header is a number; the date form is ignored and the back-off used."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
