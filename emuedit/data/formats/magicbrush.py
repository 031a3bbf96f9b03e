"""MagicBrush (arXiv 2306.10012): 8,807 turns of 4,512 sessions, edited by people with DALL-E 2. There are no captions.

The mask is the source image with the edited region made transparent, sometimes in another resolution
(OSU-NLP-Group/MagicBrush#10). The authors ask not to train on the test split, and `dev` is for evaluation: without `--files`,
only the files of `train` are imported.
"""

from emuedit.data.formats.pair_format import NOTE, Column, PairFormat

FORMAT = PairFormat(
    name="magicbrush",
    source="osunlp/MagicBrush",
    licence="CC-BY-4.0",
    family="img_id",
    files="train-*.parquet",
    columns={
        "img_id": Column("text", NOTE),
        "turn_index": Column("int", NOTE),
        "source_img": Column("image", "source"),
        "mask_img": Column("image", "mask"),
        "instruction": Column("text", "instruction"),
        "target_img": Column("image", "target"),
    },
)
