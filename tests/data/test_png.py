import numpy as np
import pytest

from emuedit.data.png import PngError, encode_png, png_size


def test_the_size_of_a_png_is_read_from_its_header() -> None:
    png = encode_png(np.zeros((3, 5, 3), np.uint8))
    assert png_size(png) == png_size(png[:24]) == (3, 5)
    with pytest.raises(PngError, match="want PNG bytes, got 3 bytes"):
        png_size(b"GIF")
