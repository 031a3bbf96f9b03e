"""The project's own format: the columns of InstructPix2Pix, which other trainers read, plus further fields of Pair."""

from emuedit.data.formats.pair_format import IGNORED, Column, PairFormat

FORMAT = PairFormat(
    name="emuedit",
    source="emuedit",
    licence="as its README.md says",
    family=None,
    columns={
        "original_prompt": Column("text", "source_caption"),
        "original_image": Column("image", "source"),
        "edit_prompt": Column("text", "instruction"),
        "edited_prompt": Column("text", "target_caption"),
        "edited_image": Column("image", "target"),
        "mask": Column("image", "mask"),
        "task": Column("text", "task"),
        "recipe": Column("json", "recipe"),
        "seed": Column("int", "seed"),
        "model_revision": Column("text", "model_revision"),
        "instruction_id": Column("text", "instruction_id"),
        "parent_ids": Column("texts", "parent_ids"),
        "pair_id": Column("text", IGNORED),
    },
    scores="score_",
)
