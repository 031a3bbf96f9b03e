"""Published formats of edit-pair datasets, one module each; import from all, export in our own."""

FORMAT_MODULES = {
    "instructpix2pix": "instructpix2pix",
    "magicbrush": "magicbrush",
    "ultraedit": "ultraedit",
    "emuedit": "emuedit_format",
}
"""Format name -> its module in this package."""
FORMAT_NAMES = tuple(FORMAT_MODULES)
