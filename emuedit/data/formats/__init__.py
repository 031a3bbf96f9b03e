"""Formats of edit-pair datasets, one module each; import from all, export in our own."""

FOLDER = "folder"
"""Name of the format of image files."""
FORMAT_MODULES = {
    "instructpix2pix": "instructpix2pix",
    "magicbrush": "magicbrush",
    "ultraedit": "ultraedit",
    "emuedit": "emuedit_format",
    FOLDER: "pair_folder",
}
"""Format name -> its module in this package."""
FORMAT_NAMES = tuple(FORMAT_MODULES)
