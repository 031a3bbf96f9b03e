import pytest
from pydantic import ValidationError

from emuedit.training.optim.lr_schedule import Decay, LrSchedule
from emuedit.training.train_settings import NEW_WEIGHTS, TrainSettings
from tests.training.tiny_training import make_editor

SETTINGS = TrainSettings(steps=100, batch_size=4, lr=1e-3, lr_mult_new=10.0, lr_mult_text=0.3, warmup_steps=7)

DEFAULTS = {
    "preset": None, "seed": 0, "dtype": "auto", "objective": "base", "zero_terminal_snr": False, "min_snr_gamma": None,
    "change_mask": True, "accumulation_steps": 1, "gradient_checkpointing": False, "compile": False, "cuda_graph": False,
    "optimizer": "adamw", "lora": None, "lr_mult_new": 1.0, "lr_mult_text": 0.0, "warmup_steps": 0, "decay_share": 0.4,
    "decay": "linear", "adam_beta2": 0.999, "weight_decay": 0.01, "max_grad_norm": 1.0, "ema_decay": 0.999,
    "ema_device": "same", "ema_dtype": "float32", "task_embedding_dim": 32, "task_balance": 0.5, "task_weights": {},
    "replay_share": 0.2, "start_share": 0.0, "resolution": None, "max_aspect_ratio": 2.0, "flip": True,
    "dropout": {"text": 0.05, "image": 0.05, "both": 0.05},
    "loss_weights": {
        "timestep_sampling": "power", "timestep_power": (1.0, 1.0), "min_latent_change": 0.15, "mask_balance": 0.0,
        "background_weight": 1.0, "change_loss_weight": 0.0, "change_mask_balance": 0.0,
    },
    "held_out_share": 0.05, "eval_every_steps": 100, "log_every_steps": 10, "save_every_s": 60.0, "stored_dtype": "float16",
}  # fmt: skip


def test_the_defaults_are_those_of_the_papers_or_our_own() -> None:
    required = {"steps": 100, "batch_size": 4, "lr": 1e-3}
    assert TrainSettings.model_validate(required).model_dump() == DEFAULTS | required


@pytest.mark.slow
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


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_task_weight_is_positive_and_finite(weight: float) -> None:
    """A task of weight 0 was never drawn, and was published as a trained one."""
    with pytest.raises(ValidationError, match=r"task_weights\.text"):
        TrainSettings(steps=1, batch_size=1, lr=1.0, task_weights={"text": weight})


def test_the_pure_noise_step_is_drawn() -> None:
    """Of 240,000 logit-normal timesteps, none was the last one, with which every edit starts after zero terminal SNR."""
    settings = {"steps": 1, "batch_size": 1, "lr": 1.0, "zero_terminal_snr": True, "objective": "v_prediction"}
    with pytest.raises(ValidationError, match="want timestep_sampling power with zero_terminal_snr, got logit_normal"):
        TrainSettings.model_validate(settings | {"loss_weights": {"timestep_sampling": "logit_normal"}})
    TrainSettings.model_validate(settings)
