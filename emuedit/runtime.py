"""Device and number format, and all random number generators.

Every random number comes from `seed_for` with keys that describe its use, such as
`generator("pairs", instruction.id, candidate)`. So results do not depend on order, number of workers, or restarts.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from pydantic import AfterValidator

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_DEVICES = ("cuda", "mps", "cpu")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Runtime:
    """Device and number format of networks. Created by `Runtime.choose`; both fields are plain strings."""

    device: str
    dtype: str

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "auto") -> "Runtime":
        """Resolve 'auto': the first available of cuda, mps, cpu, and a fast and correct number format on it.

        On cuda that is bfloat16, on mps float32. On a CPU it is bfloat16 only where `number_format.probe` finds it faster
        than float32 and correct. Raises ValueError for an unknown value and for a device that this machine does not have.
        """
        check_device(device)
        check_dtype(dtype)
        kind = device.split(":")[0]
        present = _present_devices()
        if device == "auto":
            device = kind = present[0]
        if kind not in present:
            raise ValueError(f"want a device of this machine ({_quoted(present)}), got {device!r}; use 'auto'")
        if dtype == "auto":
            dtype = _auto_dtype(device)
        return cls(device, dtype)

    def __str__(self) -> str:
        return f"{self.dtype} on {self.device}"

    @property
    def torch_device(self) -> "torch.device":
        """The device as a torch object."""
        import torch

        return torch.device(self.device)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The number format as a torch object."""
        import torch

        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def autocast(self) -> "torch.autocast":
        """Autocast to the number format; does nothing for float32."""
        import torch

        return torch.autocast(self.torch_device.type, self.torch_dtype, enabled=self.dtype != "float32")


def check_device(name: str) -> str:
    """The name of a device, whether or not this machine has it. Raises ValueError for an unknown one."""
    if not re.fullmatch(rf"auto|{'|'.join(_DEVICES)}|cuda:[0-9]+", name):
        raise ValueError(f"want device 'auto', {_quoted(_DEVICES)} (or 'cuda:1'); got {name!r}")
    return name


def check_dtype(name: str) -> str:
    """The name of a number format. Raises ValueError for an unknown one."""
    if name not in ("auto", *_DTYPES):
        raise ValueError(f"want dtype 'auto', {_quoted(_DTYPES)}; got {name!r}")
    return name


Device = Annotated[str, AfterValidator(check_device)]
"""A device in params: auto, cuda, mps or cpu, or a GPU with its number, such as cuda:1."""
Dtype = Annotated[str, AfterValidator(check_dtype)]
"""A number format in params: auto, float32, bfloat16 or float16."""


def seed_for(*keys: str | int) -> int:
    """A seed in [0, 2**63) that depends only on the keys, their types and their order: equal on every machine and run."""
    if not keys:
        raise ValueError("want at least one key that describes the use of the numbers, got none; e.g. seed_for('pairs', 7)")
    digest = hashlib.blake2b(digest_size=8)
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise TypeError(f"want keys of type str or int, got {key!r} ({type(key).__name__}); convert it to a stable string")
        text = f"{'s' if isinstance(key, str) else 'i'}{key}".encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return int.from_bytes(digest.digest(), "big") >> 1


def rng(*keys: str | int) -> np.random.Generator:
    """A numpy generator seeded by `seed_for(*keys)`."""
    return np.random.default_rng(seed_for(*keys))


def sample(values: Sequence[T], n: int, random: np.random.Generator) -> list[T]:
    """Up to n different values in random order. `random.permutation(values)` would make an array, in which each text takes as
    much memory as the longest."""
    return [values[i] for i in random.permutation(len(values))[:n]]


def generator(*keys: str | int, device: str = "cpu") -> "torch.Generator":
    """A torch generator seeded by `seed_for(*keys)`. Draw on the CPU and move, so that every device sees the same numbers."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_for(*keys))


def _auto_dtype(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        with torch.cuda.device(device):  # a machine may have GPUs of two generations
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device == "cpu":
        from emuedit.number_format import probe

        return probe().dtype
    return "float32"


def _present_devices() -> tuple[str, ...]:
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return tuple(name for name in _DEVICES if present[name])


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
