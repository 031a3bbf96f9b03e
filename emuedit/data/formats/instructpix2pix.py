"""InstructPix2Pix (arXiv 2211.09800), `timbrooks/instructpix2pix-clip-filtered`: 313,010 generated pairs of 512 px.

There are up to four pairs per prompt. The authors filtered them with CLIP but publish no scores. The licence is not stated.
"""

from emuedit.data.formats.pair_format import Column, PairFormat

FORMAT = PairFormat(
    name="instructpix2pix",
    source="timbrooks/instructpix2pix-clip-filtered",
    licence="not stated",
    family="original_prompt",
    columns={
        "original_prompt": Column("text", "source_caption"),
        "original_image": Column("image", "source"),
        "edit_prompt": Column("text", "instruction"),
        "edited_prompt": Column("text", "target_caption"),
        "edited_image": Column("image", "target"),
    },
)
