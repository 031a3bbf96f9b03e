"""Padding of images to the grid of a network."""


def padded_px(height: int, width: int, grid_px: int) -> int:
    """Number of pixels of an image whose sides are padded to multiples of `grid_px`."""
    return (height + -height % grid_px) * (width + -width % grid_px)
