import numpy as np
import pytest
import torch

from emuedit.models import image_tensors


def test_every_byte_survives_the_round_trip() -> None:
    array = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1).repeat(3, axis=3)
    images = image_tensors.from_uint8(array)
    assert images.shape == (1, 3, 8, 32)
    assert images.min() == -1
    assert images.max() == 1
    np.testing.assert_array_equal(image_tensors.to_uint8(images), array)


def test_the_round_trip_through_pil_is_exact(two_images: torch.Tensor) -> None:
    pil_images = image_tensors.to_pil(two_images)
    arrays = np.stack([np.asarray(image) for image in pil_images])
    torch.testing.assert_close(image_tensors.from_uint8(arrays), two_images, rtol=0, atol=0)
    assert pil_images[0].size == (56, 40)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 4, 4), r"\(3, 4, 4\)"),
        (torch.full((1, 3, 4, 4), 255.0), "255"),
        (torch.full((1, 3, 4, 4), torch.nan), "nan"),
    ],
)
def test_wrong_tensors_are_an_error(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_tensors.check_images(images)
