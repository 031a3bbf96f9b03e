"""How an edit is made: the one record of its settings, with defaults and bounds.

Params, command line options, the signature of the registered model and `Editor.edit` are derived from its fields. A new setting
is a field here, a number, and a line where it is used.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from emuedit.config import Params
from emuedit.name_hints import closest_match, new_name


class SettingsError(ValueError):
    """Raised for a setting that does not exist or is out of bounds."""


class EditSettings(Params):
    """Settings of an edit. A trained editor brings the values with which it was evaluated; these are the paper's, or ours."""

    steps: int = Field(20, ge=1, le=1000)
    """Denoising steps; more is slower."""
    image_guidance_scale: float = Field(1.5, ge=0, le=100)
    """Guidance by the picture, s_I (Emu Edit, arXiv 2311.10089: 1.5); at 1 it costs nothing."""
    guidance_scale: float = Field(5.0, ge=0, le=100)
    """Guidance by the instruction, s_T (Emu Edit: 5.0); at 1 it costs nothing."""
    guidance_from: float = Field(0.0, ge=0, le=1)
    """Share of the steps before guidance begins; steps without it need one evaluation of the network in place of three."""
    guidance_to: float = Field(1.0, ge=0, le=1)
    """Share of the steps after which guidance ends (Kynkäänniemi et al., arXiv 2404.07724)."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """Rescale guidance to the spread of the conditional prediction, against over-saturation (Lin et al., arXiv 2305.08891)."""
    preserve: float = Field(1.0, ge=0, le=1)
    """How strongly the source is kept where the editor predicts no change (ours); 0, or no change-mask head: not at all."""
    composite: int = Field(1, ge=0, le=1)
    """1: of a task that edits an object, only cells of the latents in which the editor predicts a change are edited; all other
    pixels are those of the picture, bit for bit (ours). Without a change-mask head it has no effect."""
    change_threshold: float = Field(0.03, ge=0, le=3)
    """Pixels that change less, summed over RGB in [0, 1], keep the input's value (Emu Edit's alpha: 0.03); 0: none do."""
    against_reconstruction: int = Field(1, ge=0, le=1)
    """1: change is measured from the autoencoder's reconstruction of the picture, so that its error is no change (ours); 0: from
    the picture, as in the paper."""
    resolution: int = Field(0, ge=0, le=16384)
    """Side in px of the square with as many pixels as a picture is edited at; of a larger picture a smaller copy is edited, and
    what changed is laid over it; 0: the editor's own."""
    crop: int = Field(0, ge=0, le=1)
    """1: edit a large picture again in a window around what changed, so that small objects get sharp edits; twice the time."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the noise; the same seed gives the same picture."""

    def with_changes(self, changes: Mapping[str, Any]) -> "EditSettings":
        """These settings with some values replaced. Raises SettingsError, which says what is wrong with which value."""
        values = self.model_dump() | dict(changes)
        for name in changes:
            if name not in EditSettings.model_fields:
                renamed = new_name(name)
                hint = f"; it is now {renamed!r}" if renamed else closest_match(name, EditSettings.model_fields)
                raise SettingsError(f"want settings out of {', '.join(EditSettings.model_fields)}; got {name!r}{hint}")
        try:
            return EditSettings.model_validate(values)
        except ValidationError as error:
            problems = (f"{details['loc'][0]}: {details['msg']}, got {details['input']!r}" for details in error.errors())
            raise SettingsError("; ".join(problems)) from error
