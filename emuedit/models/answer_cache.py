"""Keep the answers of an LLM on disk, so that no question is paid for twice: after a stop, with more captions or other tasks."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from emuedit.models.language_model import LLM, TEMPERATURE, TOP_P, LLMRefusalError, Message

if TYPE_CHECKING:
    from pathlib import Path

    from emuedit.models.constrained_decoding import Schema


class CachingLLM:
    """An LLM that answers from a file of JSON lines where that has the same question: messages, seed, sampling and schema.

    The file is for one LLM. Answers and refusals are kept; other errors are not, and the question is asked again. That includes
    answers that were cut, since a higher limit of tokens is not part of the question. Only the place of each line is held in
    memory. Safe to use from several threads, not from several processes.
    """

    def __init__(self, llm: LLM, path: Path) -> None:
        self._llm, self._path, self._lock = llm, path, Lock()
        self._places = _read_places(path)

    def write(
        self,
        messages: list[Message],
        *,
        seed: int,
        temperature: float | None = TEMPERATURE,
        top_p: float | None = TOP_P,
        schema: Schema | None = None,
    ) -> str:
        """See `LLM.write`."""
        key = _key([messages, seed, temperature, top_p, schema])
        line = self._read(key)
        if line is None:
            line = {"key": key, "refused": False}
            try:
                line["text"] = self._llm.write(messages, seed=seed, temperature=temperature, top_p=top_p, schema=schema)
            except LLMRefusalError as error:
                line |= {"text": str(error), "refused": True}
            self._append(line)
        if line["refused"]:
            raise LLMRefusalError(line["text"])
        text: str = line["text"]
        return text

    def _read(self, key: str) -> dict[str, Any] | None:
        with self._lock:
            if key not in self._places:
                return None
            with self._path.open("rb") as file:
                file.seek(self._places[key])
                line: dict[str, Any] = json.loads(file.readline())
                return line

    def _append(self, line: dict[str, Any]) -> None:
        """Append a line. It begins with a line end, so that a line that was cut short does not spoil it."""
        with self._lock, self._path.open("ab") as file:
            self._places[line["key"]] = file.tell() + 1
            file.write(b"\n" + json.dumps(line).encode())


def _key(question: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read_places(path: Path) -> dict[str, int]:
    """Key -> offset of its line. Lines that are empty, or were cut short when a process was killed, are ignored."""
    places, place = {}, 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError):
                    places[str(json.loads(line)["key"])] = place
                place += len(line)
    return places
