"""Shards of the toy world: candidates of both methods, masks from both sources, and every reason for a rejection."""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.config import Params, load
from emuedit.data.png import decode_png
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.runtime import Runtime
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis import masks
from emuedit.synthesis.attention_features import AttentionFeatures
from emuedit.synthesis.candidate import Candidate, Region, SynthesisParams
from emuedit.synthesis.masks import LocatedObject, MaskParams
from emuedit.synthesis.methods.diffedit import NoiseDifference
from emuedit.synthesis.methods.local_blend import LocalBlend
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.recipes import PromptToPromptRecipe, Recipe, SoftMaskRecipe
from emuedit.synthesis.rejection import Rejected
from emuedit.synthesis.shard_maker import IN, ShardMaker, make_shard

ROOT = Path(__file__).parents[2]
STAR, BLUE = "a big red star on the left on grass", "a big blue star on the left on grass"
LONG = " and ".join([STAR] * 9)
NOISE_DIFFERENCE = NoiseDifference(strength=0.5, n_noises=2, threshold=0.5)
ALIGNED_WORDS = PromptToPromptRecipe(method="prompt_to_prompt", mask=None, self_tokens=64, guidance_scale=3.0)


def make_params(**changes: Any) -> SynthesisParams:
    """Params of the toy world with few steps."""
    quick = {"steps": 3, "rows_per_batch": 6, "detector_threshold": 0.0, "max_area": 0.9}
    return load(PairsParams, "pairs", ROOT / "params.yaml").model_copy(update=quick | changes)


def object_recipe() -> SoftMaskRecipe:
    """The toy world's recipe of `local`, whose mask is made of the named object."""
    (recipe,) = make_params().recipes["local"]
    assert isinstance(recipe, SoftMaskRecipe)
    assert recipe.mask is not None
    return recipe


def difference_recipe() -> SoftMaskRecipe:
    """The same with a mask that is computed from the base model's predictions."""
    recipe = object_recipe()
    assert recipe.mask is not None
    return recipe.model_copy(update={"mask": recipe.mask.model_copy(update={"noise_difference": NOISE_DIFFERENCE})})


@pytest.fixture(scope="module")
def models() -> ModelSet:
    return ModelSet(make_params().world, ROOT, Runtime("cpu", "float32"))


def make_pairs(
    models: ModelSet, instructions: Sequence[Instruction], *recipes: Recipe, **changes: Any
) -> tuple[list[Pair], list[Drop]]:
    """Pairs of `local` under the given recipes."""
    params = make_params(recipes=make_params().recipes | {"local": recipes}, **changes)
    return make_shard(instructions, models, params, Counter())


def make_instruction(
    target: str, named_object: str | None, task: str = "local", source: str = STAR, target_object: str | None = None
) -> Instruction:
    return Instruction("c0", task, "change it", source, target, named_object, target_object, False, 0, "test", "")


@pytest.mark.slow
def test_a_recipe_of_a_type_that_is_not_generated_is_an_error(models: ModelSet) -> None:
    class OtherRecipe(Params):
        method: str = "other"
        mask: MaskParams | None = None
        guidance_scale: float = 3.0

    with pytest.raises(TypeError, match="add its batches to `generate`"):
        make_pairs(models, [make_instruction(BLUE, "red star")], OtherRecipe())  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_mask_from_the_base_model_needs_no_detector(models: ModelSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def locate_nothing(detector: Any, segmenter: Any, images: Any, queries: Any, *_: Any) -> dict[Any, Any]:
        assert not queries
        return {}

    monkeypatch.setattr(masks, "locate_objects", locate_nothing)
    instructions = [make_instruction(BLUE, None), make_instruction(STAR, "red star")]
    (pair,), (drop,) = make_pairs(models, instructions, difference_recipe())
    assert pair.target_caption == BLUE
    assert pair.recipe["mask"]["noise_difference"] == {"strength": 0.5, "n_noises": 2, "threshold": 0.5}
    assert pair.mask is not None
    M = decode_png(pair.mask)
    assert 0 < (M > 0).mean() < 1
    assert drop.reason == "no_difference"  # both captions are the same


@pytest.mark.slow
def test_recipes_of_a_task_may_differ_in_the_source_of_their_masks(models: ModelSet) -> None:
    pairs, drops = make_pairs(models, [make_instruction(BLUE, "red star")], object_recipe(), difference_recipe())
    by_object, by_difference = pairs
    assert not drops
    assert by_object.mask != by_difference.mask
    assert by_object.recipe["mask"]["noise_difference"] is None
    assert by_object.source == by_difference.source


@pytest.mark.slow
def test_prompt_to_prompt_preserves_the_source_as_soft_masks_do(models: ModelSet) -> None:
    """Without control it is plain sampling; with an unchanged caption under full control it gives the source again."""
    mask = object_recipe().mask
    settings: dict[str, Any] = {"method": "prompt_to_prompt", "mask": mask, "self_tokens": 1 << 20, "null_too": True}
    blend = LocalBlend(n_tokens=256, threshold=0.3, start=0.0)
    controlled = PromptToPromptRecipe(cross_fraction=1.0, self_fraction=1.0, blend=blend, **settings)
    free = PromptToPromptRecipe(cross_fraction=0.0, self_fraction=0.0, blend=None, **settings)
    instructions = [make_instruction(BLUE, "red star"), make_instruction(STAR, "red star")]
    pairs, drops = make_pairs(models, instructions, object_recipe(), controlled, free)
    assert not drops
    assert [pair.recipe["kind"] for pair in pairs] == ["soft_mask", "prompt_to_prompt", "prompt_to_prompt"] * 2
    assert pairs[1].recipe["blend"] == {"n_tokens": 256, "threshold": 0.3, "start": 0.0}
    assert all(pair.mask == pairs[0].mask for pair in pairs), "scores look at the same region"

    def change(pair: Pair) -> float:
        return float(np.abs(decode_png(pair.source).astype(int) - decode_png(pair.target)).mean())

    unchanged_controlled, unchanged_free = change(pairs[4]), change(pairs[5])
    assert unchanged_controlled <= 1
    assert unchanged_free <= 1
    assert 1 < change(pairs[1]) < change(pairs[2])


@pytest.mark.slow
def test_prompt_to_prompt_reports_its_progress(models: ModelSet) -> None:
    """The shares of the base model, which are all but the sixth of the scores."""
    shares: list[float] = []
    params = make_params(recipes=make_params().recipes | {"local": (ALIGNED_WORDS,)})
    make_shard([make_instruction(BLUE, "red star")], models, params, Counter(), shares.append)
    assert sum(shares) == pytest.approx(1 / 1.2)


@pytest.mark.slow
def test_the_attention_features_of_a_shard_are_freed_with_it(models: ModelSet) -> None:
    """They are most of a shard's memory, and a worker makes hundreds of shards."""
    gc.collect()
    gc.disable()
    try:
        make_shard([make_instruction(BLUE, "red star")], models, make_params(), Counter(), lambda share: None)
        assert not [features for features in gc.get_objects() if isinstance(features, AttentionFeatures)]
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [ALIGNED_WORDS, object_recipe()])
def test_captions_that_the_base_model_would_truncate_are_dropped_with_a_reason(recipe: Recipe, models: ModelSet) -> None:
    instructions = [
        make_instruction(BLUE, "red star"),
        make_instruction(LONG, "red star"),
        make_instruction(LONG, "red star", "detect", target_object="red star"),  # drawn into the image of STAR
        make_instruction(BLUE, "red star", "detect", source=LONG, target_object="red star"),
    ]
    pairs, drops = make_pairs(models, instructions, recipe)
    assert [pair.instruction_id for pair in pairs] == [instructions[0].id, instructions[2].id]
    assert [(drop.subject, drop.reason) for drop in drops] == [
        (instructions[1].id, "caption_too_long"), (instructions[3].id, "caption_too_long"),
    ]  # fmt: skip


def test_a_shard_in_which_all_captions_are_too_long_has_no_pairs(models: ModelSet) -> None:
    pairs, (drop,) = make_pairs(models, [make_instruction(LONG, "red star")], object_recipe())
    assert not pairs
    assert drop.reason == "caption_too_long"


@pytest.mark.slow
def test_the_guidance_interval_reaches_every_method_and_is_recorded(models: ModelSet) -> None:
    rows: list[int] = []
    hook = models.base_model.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    free = {"source_fraction": 0.0, "self_fraction": 0.0, "blend_to": 0.0}
    recipes = SoftMaskRecipe(mask=None, **free), ALIGNED_WORDS.model_copy(update={"cross_fraction": 0.0})
    try:
        pairs, _ = make_pairs(models, [make_instruction(BLUE, None)], *recipes, steps=4, guidance_interval=(0.25, 0.5))
    finally:
        hook.remove()
    assert rows == [1, 2, 1, 1, 1, 2, 1, 1, 2, 4, 2, 2]  # the source, the soft mask, Prompt-to-Prompt with its source
    assert [pair.recipe["guidance_interval"] for pair in pairs] == [[0.25, 0.5]] * 2


@dataclass(frozen=True)
class RejectedShard:
    """A shard in which all instructions but the first are rejected, each for another reason."""

    maker: ShardMaker
    instructions: dict[str, Instruction]  # reason -> the instruction; 'accepted' for the first
    regions: dict[str, Region | Rejected]


@pytest.fixture(scope="module")
def shard(models: ModelSet) -> Iterator[RejectedShard]:
    """The detector and the segmenter are replaced by areas of objects, in px of a picture of 64 x 64."""
    mask = MaskParams()
    recipes = {
        "default": (SoftMaskRecipe(mask=mask),),
        "background": (SoftMaskRecipe(mask=MaskParams(complement=True)),),
        "texture": (difference_recipe(),),
        "text": (ALIGNED_WORDS,),
    }
    area_px: dict[str, int | None] = {"star": 400, "ghost": None, "dot": 4, "sky": 4000}
    instructions = {
        "accepted": make_instruction(BLUE, "star"),
        "not_detected": make_instruction(BLUE, "star, ghost"),
        "mask_too_small": make_instruction(BLUE, "dot"),
        "mask_too_large": make_instruction(BLUE, "star, sky"),
        "no_object": make_instruction(BLUE, None),
        "close-up": make_instruction(BLUE, "sky", "background"),
        "no_difference": make_instruction(STAR, "star", "texture"),
        "caption_too_long": make_instruction(LONG, "star", "text"),
        "annotator_refused": make_instruction(STAR, None, "color", target_object="darken"),
    }

    def locate(*arguments: Any) -> dict[masks.Query, LocatedObject | None]:
        images, queries = arguments[2:4]
        return {query: located_object(area_px[query[1]], images[0, 0]) for query in queries}

    def refuse(task: str, pictures: Any, *_: Any) -> tuple[Any, Any]:
        return pictures, np.zeros(len(pictures), dtype=bool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "locate_objects", locate)
        patch.setattr(models, "annotate", refuse)
        maker = ShardMaker(list(instructions.values()), models, make_params(recipes=recipes, min_area=0.01), None)
        yield RejectedShard(maker, instructions, maker.locate())


def located_object(area_px: int | None, like: torch.Tensor) -> LocatedObject | None:
    if area_px is None:
        return None
    P = torch.zeros_like(like, dtype=torch.bool)
    P.view(-1)[:area_px] = True
    return LocatedObject(0.9, torch.tensor([0.0, 0.0, 8.0, 8.0]), P)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reason", ["not_detected", "mask_too_small", "mask_too_large", "no_object", "no_difference", "caption_too_long"]
)
def test_a_rejected_instruction_has_a_rejection_in_place_of_a_region(reason: str, shard: RejectedShard) -> None:
    assert shard.regions[shard.instructions[reason].id] == Rejected(reason)


def test_an_accepted_instruction_has_a_region(shard: RejectedShard) -> None:
    region = shard.regions[shard.instructions["accepted"].id]
    assert isinstance(region, Region)
    assert region.area == 400 / region.P.numel()
    assert region.box_px.tolist() == [0, 0, 8, 8]


def test_an_object_that_fills_the_image_may_get_another_background(shard: RejectedShard) -> None:
    assert isinstance(shard.regions[shard.instructions["close-up"].id], Region)


@pytest.mark.slow
def test_rejected_instructions_have_no_candidate_and_a_drop_with_their_reason(shard: RejectedShard) -> None:
    candidates: list[Candidate] = [*shard.maker.generate(shard.regions, Counter()), *shard.maker.annotate(shard.regions)]
    accepted = ("accepted", "close-up")
    assert [candidate.instruction for candidate in candidates] == [shard.instructions[name] for name in accepted]
    drops = shard.maker.drops(shard.regions, candidates)
    numbered = list(enumerate(shard.instructions.items()))
    assert drops == [Drop(instruction.id, reason, IN, n) for n, (reason, instruction) in numbered if reason not in accepted]
