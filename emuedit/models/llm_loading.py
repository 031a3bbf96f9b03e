"""Load an LLM from one string: an OpenAI-compatible endpoint, a factory function, or a local chat model."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

from emuedit.config import renamed_hint
from emuedit.models import local_llm
from emuedit.models.language_model import LLM
from emuedit.models.openai_llm import EndpointSettings, OpenAILLM

if TYPE_CHECKING:
    import torch

FACTORY_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""A spec of the form 'package.module:factory'."""


def is_local(spec: str) -> bool:
    """Whether a spec names a chat model that runs in this process, which answers one question at a time."""
    return "://" not in spec and not FACTORY_SPEC.fullmatch(spec)


def load_llm(spec: str, device: str = "cpu", dtype: torch.dtype | None = None, endpoint: EndpointSettings | None = None) -> LLM:
    """Load an LLM from 'https://host/v1#model' (OpenAI-compatible), 'package.module:factory', a folder or a hub id.

    `device` and `dtype` are for a folder or hub id, `endpoint` is for an endpoint. Raises ValueError for an endpoint without
    a model name and for a factory that cannot be imported, TypeError for a factory whose result is not an LLM, and what
    `model_sources.read_manifest` raises for a wrong folder.
    """
    if spec.startswith(("http://", "https://")):
        url, _, model = spec.partition("#")
        if not model:
            raise ValueError(f"want 'https://host/v1#model', got {spec!r}; add '#' and the model's name")
        return OpenAILLM(url, model, endpoint)
    if FACTORY_SPEC.fullmatch(spec):
        return _call_factory(spec)
    return local_llm.load(spec, device, dtype)


def _call_factory(spec: str) -> LLM:
    """Import 'package.module:factory' and call it without arguments."""
    module, _, name = spec.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"want an importable 'module:factory', got {spec!r}: {error}{renamed_hint(spec)}") from error
    llm = factory()
    if not isinstance(llm, LLM):
        got = type(llm).__name__
        raise TypeError(f"{spec} must return an object with write(messages, *, seed, temperature, top_p, schema), got {got}")
    return llm
