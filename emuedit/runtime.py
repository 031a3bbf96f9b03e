"""The one door for device, number format and randomness.

Every random number in the project comes from `seed_for` with keys that say what it is for, such as
`generator("pairs", instruction.id, candidate)`. So results do not depend on order, on the number of workers, or on a restart.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

QUIET_ENV = {
    "DIFFUSERS_VERBOSITY": "error",  # notes on configs; what matters is raised
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar for each of a dozen small files would hide our own
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""What a command asks of libraries that talk too much."""

_DEVICES = ("cuda", "mps", "cpu")
_DTYPES = ("float32", "bfloat16", "float16")


def set_env_defaults(defaults: Mapping[str, str] = QUIET_ENV) -> None:
    """Put defaults into the environment, before libraries read it; what the user set there stays."""
    os.environ.update({name: value for name, value in defaults.items() if name not in os.environ})


@dataclass(frozen=True)
class Runtime:
    """Where and in which number format networks run. Made by `Runtime.choose`; both fields are plain words."""

    device: str
    dtype: str

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "auto") -> "Runtime":
        """Settle 'auto': the first of cuda, mps, cpu that is there; bfloat16 on cuda, float32 elsewhere.

        Raises ValueError for an unknown word and for a device this machine does not have.
        """
        kind = device.split(":")[0]
        if kind not in ("auto", *_DEVICES):
            raise ValueError(f"want device 'auto', {_listed(_DEVICES)} (or 'cuda:1'); got {device!r}")
        if dtype not in ("auto", *_DTYPES):
            raise ValueError(f"want dtype 'auto', {_listed(_DTYPES)}; got {dtype!r}")
        present = _present()
        if device == "auto":
            device = kind = present[0]
        if kind not in present:
            raise ValueError(f"want a device of this machine ({_listed(present)}), got {device!r}; use 'auto'")
        if dtype == "auto":
            dtype = "bfloat16" if kind == "cuda" else "float32"
        return cls(device, dtype)

    @property
    def torch_device(self) -> "torch.device":
        """The device as torch wants it."""
        import torch

        return torch.device(self.device)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The number format as torch wants it."""
        import torch

        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


def seed_for(*keys: str | int) -> int:
    """A seed in [0, 2**63) that depends on the keys, their kinds and their order only: the same on every machine and run."""
    if not keys:
        raise ValueError("want at least one key that says what the numbers are for, got none; e.g. seed_for('pairs', 7)")
    digest = hashlib.blake2b(digest_size=8)
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise TypeError(f"want keys of kind str or int, got {key!r} ({type(key).__name__}); turn it into stable text")
        text = f"{'s' if isinstance(key, str) else 'i'}{key}".encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return int.from_bytes(digest.digest(), "big") >> 1


def rng(*keys: str | int) -> np.random.Generator:
    """A numpy generator seeded by `seed_for(*keys)`."""
    return np.random.default_rng(seed_for(*keys))


def generator(*keys: str | int, device: str = "cpu") -> "torch.Generator":
    """A torch generator seeded by `seed_for(*keys)`. Draw on the CPU and move, so that every device sees the same numbers."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_for(*keys))


def _present() -> tuple[str, ...]:
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return tuple(name for name in _DEVICES if found[name])


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
