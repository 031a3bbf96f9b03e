"""UltraEdit (arXiv 2407.05282), `BleachNick/UltraEdit` and its `_500k` and `_Region_Based_100k`.

The pairs have 512 px and scores from the authors' CLIP, DINOv2 and SSIM. The scores keep the authors' names, because our scores
come from other networks.
"""

from emuedit.data.formats.pair_format import NOTE, SCORE, Column, PairFormat

FORMAT = PairFormat(
    name="ultraedit",
    source="BleachNick/UltraEdit",
    licence="CC-BY-4.0",
    family="source_caption",
    columns={
        "clip_sim_source": Column("number", SCORE),
        "clip_sim_target": Column("number", SCORE),
        "clip_sim_dir": Column("number", SCORE),
        "clip_sim_image": Column("number", SCORE),
        "dinov2_sim": Column("number", SCORE),
        "ssim": Column("number", SCORE),
        "source_caption": Column("text", "source_caption"),
        "target_caption": Column("text", "target_caption"),
        "idx": Column("plain", NOTE),
        "edit_prompt": Column("text", "instruction"),
        "edit_object": Column("text", NOTE, optional=True),
        "source_image": Column("image", "source"),
        "edited_image": Column("image", "target"),
        "mask_image": Column("image", "mask", optional=True),
    },
)
