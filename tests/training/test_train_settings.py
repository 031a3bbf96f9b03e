import pytest
from pydantic import ValidationError

from emuedit.training.lr_schedule import Decay, LrSchedule
from emuedit.training.train_settings import NEW_WEIGHTS, TrainSettings
from tests.training.tiny_training import make_editor

SETTINGS = TrainSettings(steps=100, batch_size=4, lr=1e-3, lr_mult_new=10.0, lr_mult_text=0.3, warmup_steps=7)


def test_each_kind_of_weight_has_its_factor_of_the_learning_rate() -> None:
    factors = {name: SETTINGS.lr_mult(name) for name, _ in make_editor().named_parameters()}
    assert {factors[name] for name in factors if name.startswith("text.")} == {0.3}
    assert {factors[name] for name in factors if name.startswith("net.table.")} == {10.0}
    assert factors["net.unet.conv_in.weight"] == factors["net.unet.class_embedding.weight"] == 10.0
    assert factors["net.unet.conv_out.weight"] == 1.0
    for prefix in NEW_WEIGHTS:
        assert any(name.startswith(prefix) for name in factors), f"no weight is called {prefix}"


def test_the_schedule_has_the_values_of_the_settings() -> None:
    assert SETTINGS.schedule == LrSchedule(steps=100, lr=1e-3, warmup_steps=7, decay_share=0.4, decay="linear")


def test_the_change_mask_is_turned_off_by_one_setting() -> None:
    """Weights by region may stay; those that have no effect are listed."""
    weights = {"mask_balance": 0.5, "background_weight": 0.3, "change_loss_weight": 0.5, "timestep_power": (0.5, 1.0)}
    values = SETTINGS.model_dump() | {"loss_weights": weights}
    off = TrainSettings.model_validate(values | {"change_mask": False})
    assert off.ignored_loss_weights() == {"mask_balance": 0.5, "background_weight": 0.3, "change_loss_weight": 0.5}
    assert TrainSettings.model_validate(values).ignored_loss_weights() == {}
    assert TrainSettings.model_validate(SETTINGS.model_dump() | {"change_mask": False}).ignored_loss_weights() == {}


@pytest.mark.parametrize("changes", [{"objective": "v_prediction", "zero_terminal_snr": True}, {"objective": "flow"}])
def test_min_snr_is_refused_where_the_first_step_of_an_edit_would_not_be_trained(changes: dict[str, str | bool]) -> None:
    values = SETTINGS.model_dump() | changes
    with pytest.raises(ValidationError, match=r"want min_snr_gamma null with .*, got 5.0: .*; set train.min_snr_gamma to null"):
        TrainSettings.model_validate(values | {"min_snr_gamma": 5.0})
    assert TrainSettings.model_validate(values).min_snr_gamma is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("batch_size", 0), ("lr", 0.0), ("lr_mult_new", 0.0), ("lr_mult_text", -0.1), ("ema_decay", 1.0),
        ("held_out_share", 1.0), ("decay_share", 1.1), ("stored_dtype", "bfloat16"), ("decay", "step"), ("seed", -1),
    ],
)  # fmt: skip
def test_values_out_of_bounds_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        TrainSettings.model_validate(SETTINGS.model_dump() | {name: value})


def test_every_setting_has_a_line_of_documentation() -> None:
    for name, field in TrainSettings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_schedule_is_that_of_the_settings(decay: Decay) -> None:
    changes = {"steps": 100, "warmup_steps": 10, "decay_share": 0.4, "lr": 0.5, "decay": decay}
    assert SETTINGS.model_copy(update=changes).schedule == LrSchedule(100, 0.5, 10, 0.4, decay)
