from collections.abc import Callable

import pytest
import yaml

from emuedit.editor import checkpoint, model_card
from emuedit.editor.edit_pipeline import EmuEditPipeline
from emuedit.models.text_to_image import TextToImageModel


def build_pipeline(model: TextToImageModel, tasks: list[str], change_mask: bool = True, **training: object) -> EmuEditPipeline:
    net = checkpoint.from_base_model(model, 6, tasks, change_mask)
    parts = {name: getattr(model.pipeline, name, None) for name in checkpoint.FROZEN_PARTS}
    return EmuEditPipeline(**parts, unet=net.unet, task_embedding=net.table, training=training)


@pytest.fixture
def base_model(make_base_model: Callable[[str], TextToImageModel]) -> TextToImageModel:
    return make_base_model("sd15")


def front_matter(card: str) -> dict[str, object]:
    empty, front, _ = card.split("---\n", 2)
    assert empty == ""
    loaded: dict[str, object] = yaml.safe_load(front)
    return loaded


def test_the_front_matter_is_what_the_hub_reads(base_model: TextToImageModel) -> None:
    from huggingface_hub import ModelCard

    card = model_card.render(build_pipeline(base_model, ["local"], base_model="owner/sd", steps=7))
    front = front_matter(card)
    assert front["library_name"] == "diffusers"
    assert front["pipeline_tag"] == "image-to-image"
    assert front["base_model"] == "owner/sd"
    assert "emuedit" in ModelCard(card).data.tags


def test_a_base_model_of_this_machine_is_not_named_to_the_hub(base_model: TextToImageModel) -> None:
    card = model_card.render(build_pipeline(base_model, ["local"], base_model="weights/folder/base_model"))
    assert "base_model" not in front_matter(card)
    assert "base model: weights/folder/base_model" in card


def test_the_card_lists_the_trained_tasks_and_the_facts_of_training(base_model: TextToImageModel) -> None:
    card = model_card.render(build_pipeline(base_model, ["remove", "sketch"], steps=7, held_out_pairs=3))
    assert "- `remove`: erase an object" in card
    assert "- `sketch`: " in card
    assert "`local`" not in card
    assert "- steps: 7\n- held out pairs: 3\n" in card
    assert 'task="remove"' in card
    assert "predicts where an image changes" in card


def test_the_card_says_that_there_is_no_change_mask(base_model: TextToImageModel) -> None:
    assert "no change-mask head" in model_card.render(build_pipeline(base_model, ["sketch"], change_mask=False))
