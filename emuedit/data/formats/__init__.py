"""Published formats of edit-pair datasets, one module each; import from them, and export in our own format."""

FORMAT_MODULES = {
    "instructpix2pix": "instructpix2pix",
    "magicbrush": "magicbrush",
    "ultraedit": "ultraedit",
    "emuedit": "own_format",
}
"""Name of a format -> the module of this package that defines it."""
FORMAT_NAMES = tuple(FORMAT_MODULES)
