import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from emuedit.config import load
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis.recipes import PromptToPromptRecipe, SoftMaskRecipe, describe_recipe, recipes_for
from emuedit.tasks import TASKS, get_task

ROOT = Path(__file__).parents[2]
SOFT_MASK: dict[str, Any] = {
    "mask": None, "source_fraction": 0.0, "self_fraction": 0.0, "blend_from": 0.0, "blend_to": 0.0, "guidance_scale": 3.0,
}  # fmt: skip
PROMPT_TO_PROMPT: dict[str, Any] = {
    "method": "prompt_to_prompt", "mask": None, "cross_fraction": 0.8, "self_fraction": 0.4, "self_tokens": 64,
    "null_too": False, "blend": None, "guidance_scale": 5.0,
}  # fmt: skip


def validate_recipes(**recipes: list[dict[str, Any]]) -> PairsParams:
    """The params of the toy world with other recipes for some tasks, read as from a file."""
    params = load(PairsParams, "pairs", ROOT / "params.yaml").model_dump(mode="json")
    params["recipes"] |= recipes
    return PairsParams.model_validate_json(json.dumps(params))


def test_every_task_is_generated_or_annotated() -> None:
    recipes = load(PairsParams, "pairs", ROOT / "params.yaml").recipes
    for task in TASKS:
        assert bool(recipes_for(recipes, task.name)) != task.annotated
    assert all(recipe.mask and recipe.mask.complement for recipe in recipes_for(recipes, "background"))
    for recipe in (*recipes_for(recipes, "global"), *recipes_for(recipes, "style")):
        assert recipe.mask is None
        assert recipe.self_fraction > 0


def test_tasks_without_recipes_use_the_default() -> None:
    recipes = validate_recipes(default=[PROMPT_TO_PROMPT], text=[SOFT_MASK, SOFT_MASK]).recipes
    assert recipes_for(recipes, "style") == (PromptToPromptRecipe(**PROMPT_TO_PROMPT),)
    assert recipes_for(recipes, "text") == (SoftMaskRecipe(**SOFT_MASK),) * 2
    assert recipes_for(recipes, "detect") == ()


def test_recipes_that_no_task_can_use_are_refused() -> None:
    assert get_task("detect").annotated
    with pytest.raises(ValidationError, match="no recipe for 'detect': an annotator produces its targets"):
        validate_recipes(detect=[SOFT_MASK])
    with pytest.raises(ValidationError, match="at least one recipe for 'text', got none"):
        validate_recipes(text=[])
    params = load(PairsParams, "pairs", ROOT / "params.yaml").model_dump(mode="json")
    del params["recipes"]["default"]
    with pytest.raises(ValidationError, match="recipes under 'default'"):
        PairsParams.model_validate_json(json.dumps(params))


def test_wrong_fractions_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"blend_from must not exceed blend_to, got 0.5 and 0.2"):
        SoftMaskRecipe(**(SOFT_MASK | {"blend_from": 0.5, "blend_to": 0.2}))
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        SoftMaskRecipe(**(SOFT_MASK | {"self_fraction": 1.5}))


def test_a_pair_records_its_recipe_completely() -> None:
    description = describe_recipe(SoftMaskRecipe(**SOFT_MASK), 1, steps=15)
    assert description == {"kind": "soft_mask", "candidate": 1, "steps": 15, **SOFT_MASK}


def test_the_method_decides_the_type_of_a_recipe() -> None:
    soft_mask, prompt_to_prompt = validate_recipes(local=[SOFT_MASK, PROMPT_TO_PROMPT]).recipes["local"]
    assert (type(soft_mask), type(prompt_to_prompt)) == (SoftMaskRecipe, PromptToPromptRecipe)
    with pytest.raises(ValidationError, match=r"prompt_to_prompt\.blend_from"):
        validate_recipes(local=[PROMPT_TO_PROMPT | {"blend_from": 0.0}])
    with pytest.raises(ValidationError, match=r"soft_mask\.cross_fraction"):
        validate_recipes(local=[SOFT_MASK | {"cross_fraction": 0.5}])
