"""The settings of an edit, with defaults and bounds.

Params, command line options, the signature of the registered model and `Editor.edit` are derived from these fields. A new setting
needs a field and a default here, and the code that uses it.
"""

import numbers
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from emuedit.config import Params, describe_values
from emuedit.name_hints import closest_match, new_name

MAX_RESOLUTION_PX = 16384


class SettingsError(ValueError):
    """Raised for a setting that does not exist or is out of bounds."""


class EditSettings(Params):
    """Settings of an edit. A trained editor has the values of its evaluation; these defaults are the paper's, or ours."""

    steps: int = Field(20, ge=1, le=1000)
    """Denoising steps; more steps are slower."""
    image_guidance_scale: float = Field(1.5, ge=0, le=100)
    """Guidance by the image, s_I (Emu Edit, arXiv 2311.10089: 1.5); 1 disables it."""
    guidance_scale: float = Field(5.0, ge=0, le=100)
    """Guidance by the instruction, s_T (Emu Edit: 5.0); 1 disables it."""
    guidance_from: float = Field(0.0, ge=0, le=1)
    """Fraction of the steps before guidance starts; an unguided step needs one U-Net evaluation instead of three."""
    guidance_to: float = Field(1.0, ge=0, le=1)
    """Fraction of the steps after which guidance ends (Kynkäänniemi et al., arXiv 2404.07724)."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """Rescale guidance to the conditional prediction's std, against over-saturation (Lin et al., arXiv 2305.08891)."""
    preserve: float = Field(1.0, ge=0, le=1)
    """Blend weight of the source where no change is predicted; 0: off. Needs a change mask (`train.change_mask`). Ours."""
    composite: int = Field(1, ge=0, le=1)
    """1: in edits of an object, change only latent cells where the editor predicts a change; all other pixels keep the
    exact values of the source. No effect without a change mask (`train.change_mask`). Ours."""
    change_threshold: float = Field(0.03, ge=0, le=3)
    """Pixels that change less (sum over RGB in [0, 1]) keep the source's value (Emu Edit's alpha: 0.03); 0: off."""
    background_threshold: float = Field(0.15, ge=0, le=3)
    """alpha of tasks that edit all but the named objects, which the network draws again. A pixel that changes less than alpha / 2
    is kept, one above 0.9 alpha is edited, and between them both are blended; the borders follow the image's edges. Applies if it
    is above `change_threshold` and that one is not 0. Ours."""
    border_px: int = Field(2, ge=0, le=64)
    """Width of the soft border, in px of the size at which the image is edited: inside the edge of the changed region, the edit
    fades into the image over it; 0: a hard edge. No effect on `background` (unless `background_threshold` is off) and on learned
    tasks with a threshold of their own, whose borders follow the image's edges. Ours."""
    against_reconstruction: int = Field(1, ge=0, le=1)
    """1: measure change from the autoencoder's reconstruction of the image, to exclude the reconstruction error (ours); 0: from
    the image, as in the paper."""
    resolution: int = Field(0, ge=0, le=MAX_RESOLUTION_PX)
    """Working resolution: a larger image is edited at about resolution² pixels, and the edit is composited into the original;
    0: the editor's training resolution."""
    crop: int = Field(0, ge=0, le=1)
    """1: edit a large image again in a window around the change, for sharp edits of small objects; takes twice as long."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the noise; the same seed gives the same image."""

    @field_validator("guidance_to")
    @classmethod
    def _check_guidance_interval(cls, guidance_to: float, info: ValidationInfo) -> float:
        if guidance_to < info.data.get("guidance_from", 0.0):
            raise ValueError(f"want guidance_to of at least guidance_from, {info.data['guidance_from']:g}; lower guidance_from")
        return guidance_to

    def with_changes(self, changes: Mapping[str, Any]) -> "EditSettings":
        """These settings with some values replaced; numbers may be numpy's.

        Raises SettingsError, which names the setting and the problem.
        """
        values = self.model_dump() | {name: _to_builtin(value) for name, value in changes.items()}
        for name in changes:
            if name not in EditSettings.model_fields:
                renamed = new_name(name)
                hint = f"; it is now {renamed!r}" if renamed else closest_match(name, EditSettings.model_fields)
                raise SettingsError(f"want settings from {', '.join(EditSettings.model_fields)}; got {name!r}{hint}")
        try:
            return EditSettings.model_validate(values)
        except ValidationError as error:
            raise SettingsError("; ".join(describe_values(error))) from error


def _to_builtin(value: Any) -> Any:
    """The int or float of a number of another type, such as numpy's; other values, and bool, as they are."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)
