import numpy as np
import pytest
import torch

from emuedit.models import image_tensors


def test_every_byte_survives_the_round_trip() -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1).repeat(3, axis=3)
    images = image_tensors.from_uint8(picture)
    assert images.shape == (1, 3, 8, 32)
    assert images.min() == -1
    assert images.max() == 1
    np.testing.assert_array_equal(image_tensors.to_uint8(images), picture)


def test_pil_door(pictures: torch.Tensor) -> None:
    back = image_tensors.from_pil(image_tensors.to_pil(pictures))
    torch.testing.assert_close(back, pictures, rtol=0, atol=0)
    assert image_tensors.to_pil(pictures)[0].size == (56, 40)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 4, 4), r"\(3, 4, 4\)"),
        (torch.full((1, 3, 4, 4), 255.0), "255"),
        (torch.full((1, 3, 4, 4), torch.nan), "nan"),
    ],
)
def test_wrong_pictures_are_named(images: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        image_tensors.check(images)


def test_pictures_of_several_sizes_are_refused(pictures: torch.Tensor) -> None:
    one = image_tensors.to_pil(pictures)[0]
    with pytest.raises(ValueError, match="share one size"):
        image_tensors.from_pil([one, one.resize((8, 8))])
