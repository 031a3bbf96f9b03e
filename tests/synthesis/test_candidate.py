import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from emuedit.config import load
from emuedit.data.records import Instruction
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis.candidate import Job, Region, SynthesisParams, source_caption, variant_caption
from emuedit.synthesis.masks import DetectionLimits
from emuedit.synthesis.methods.local_blend import LocalBlend
from emuedit.synthesis.recipes import PromptToPromptRecipe, SoftMaskRecipe

ROOT = Path(__file__).parents[2]


def make_instruction(reverse: bool) -> Instruction:
    return Instruction("c0", "add", "add a cat", "grass", "a cat on grass", None, "cat", reverse, 0, "test", "")


def validate(**changes: Any) -> SynthesisParams:
    """The params of the toy world with changes, read as from a file."""
    params = load(PairsParams, "pairs", ROOT / "params.yaml").model_dump(mode="json")
    return PairsParams.model_validate_json(json.dumps(params | changes))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8), (0.5, 0.5)])
def test_a_guidance_interval_is_two_growing_shares_of_the_steps(interval: tuple[float, float]) -> None:
    assert validate(guidance_interval=interval).guidance_interval == interval


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 0.5), (0.5, 1.5)])
def test_other_guidance_intervals_are_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match=r"two shares of the steps in \[0, 1\]"):
        validate(guidance_interval=interval)


def test_guidance_is_applied_in_all_steps_by_default() -> None:
    assert SynthesisParams.model_fields["guidance_interval"].default == (0.0, 1.0)


def test_detection_limits_are_those_of_the_params() -> None:
    params = validate(detector_threshold=0.3, nms_iou=0.6, min_area=0.01, max_area=0.4)
    assert params.detection_limits == DetectionLimits(0.3, 0.6, 0.01, 0.4)


@pytest.mark.parametrize(("reverse", "first", "second"), [(False, "grass", "a cat on grass"), (True, "a cat on grass", "grass")])
def test_instructions_built_backwards_begin_with_the_target(reverse: bool, first: str, second: str) -> None:
    instruction = make_instruction(reverse)
    assert (source_caption(instruction), variant_caption(instruction)) == (first, second)


def test_a_pair_of_an_own_image_costs_a_fraction_of_a_generated_one() -> None:
    params = validate(steps=50)
    generated = make_instruction(False)
    annotated = dataclasses.replace(generated, task="depth", image="photos/1.jpg", image_hash="0" * 16)
    costs = [params.estimate_cost([instruction]) for instruction in (generated, annotated)]
    assert costs == [2 * 120 + 4, 4]
    assert params.estimate_cost([generated, annotated]) == sum(costs)


def test_the_area_of_a_region_is_the_share_of_the_picture() -> None:
    P = torch.zeros(4, 8, dtype=torch.bool)
    P[:2, :4] = True
    assert Region(0, P, torch.zeros(4)).area == 0.25


def test_a_job_carries_its_recipe_to_the_method() -> None:
    M = torch.ones(1, 4, 8)
    soft_mask = SoftMaskRecipe(
        mask=None, guidance_scale=4.0, source_fraction=0.1, self_fraction=0.2, blend_from=0.3, blend_to=0.4
    )
    variant = Job(make_instruction(True), soft_mask, {}, 3, M).variant(soft_mask)
    assert (variant.source, variant.caption, variant.guidance_scale) == (3, "grass", 4.0)
    assert (variant.source_fraction, variant.self_fraction, variant.blend_from, variant.blend_to) == (0.1, 0.2, 0.3, 0.4)
    assert variant.M is M
    prompt_to_prompt = PromptToPromptRecipe(
        method="prompt_to_prompt", mask=None, guidance_scale=5.0, cross_fraction=0.6, self_fraction=0.5, self_tokens=64,
        null_too=True, blend=LocalBlend(n_tokens=16, threshold=0.2, start=0.1),
    )  # fmt: skip
    edit = Job(make_instruction(False), prompt_to_prompt, {}, 2, M).prompt_to_prompt_edit(prompt_to_prompt)
    assert (edit.source, edit.caption, edit.guidance_scale, edit.null_too) == (2, "a cat on grass", 5.0, True)
    assert (edit.cross_fraction, edit.self_fraction, edit.self_tokens) == (0.6, 0.5, 64)
    assert edit.blend is not None
    assert (edit.blend.n_tokens, edit.blend.threshold, edit.blend.start) == (16, 0.2, 0.1)
