"""What does an edit leave of a real photograph? emuedit compared with editing a smaller copy and enlarging it.

`uv run python bench/photographs.py [--quick]` writes `bench/results/photographs.json` and a sheet, `photographs.jpg`; its last
line is the same JSON.

The photographs are the two that scikit-learn carries (640 x 427 px). The editor is the toy world's, which edits at 64 px and
has never seen a photograph, so what it draws there is wrong. The question is what happens to the other pixels. Shares of changed
pixels, and L1 in [0, 1] over the pixels that emuedit's edit leaves bit-identical, are means over the edits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from harness import command
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from emuedit.editing.api import Editor
from emuedit.editor import changed_area, sampling
from emuedit.editor.settings import EditSettings
from emuedit.models.image_tensors import from_uint8, to_uint8

EDITOR = command.ROOT / "toyworld/weights/base_editor"
EDITS = (
    ("flower.jpg", "make the flower blue", "local"),
    ("flower.jpg", "remove the flower", "remove"),
    ("china.jpg", "remove the tower", "remove"),
    ("china.jpg", "add a big red star in the middle", "add"),
)
SETTINGS = EditSettings(steps=4, image_guidance_scale=1.0, guidance_scale=1.0)
SHEET_WIDTH_PX = 320


def edit_and_enlarge(editor: Editor, photo: np.ndarray, instruction: str, task: str) -> np.ndarray:
    """What a pipeline does without compositing: the image scaled to the editor's size, edited, and scaled back."""
    side = editor.sampler.resolution_px
    small = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC))
    settings = SETTINGS.with_changes({"composite": 0, "change_threshold": 0.0, "preserve": 0.0})
    edited = to_uint8(editor.sampler.sample(from_uint8(small), [instruction], [task], settings).images)[0]
    return np.asarray(Image.fromarray(edited).resize(photo.shape[1::-1], Image.Resampling.BICUBIC))


def draw_sheet(rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> Image.Image:
    """One line per edit: photograph, emuedit, its mask of changed pixels, the enlarged edit."""
    height = round(SHEET_WIDTH_PX * rows[0][1].shape[0] / rows[0][1].shape[1])
    sheet = Image.new("RGB", (4 * SHEET_WIDTH_PX, len(rows) * (height + 16)), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (instruction, *pictures) in enumerate(rows):
        top = line * (height + 16)
        pen.text((4, top + 2), f"{instruction}: photograph, emuedit, changed pixels, edited small and enlarged", fill="black")
        for column, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((SHEET_WIDTH_PX, height), Image.Resampling.BICUBIC)
            sheet.paste(small, (column * SHEET_WIDTH_PX, top + 16))
    return sheet


def main() -> None:
    """Edit, measure, write, print."""
    args = command.argument_parser(__doc__, quick="two edits").parse_args()
    torch.set_num_threads(2)
    editor = Editor(sampling.load(EDITOR), None, SETTINGS)
    changed_shares, enlarged_l1, differing, rows = [], [], [], []
    for file, instruction, task in EDITS[:2] if args.quick else EDITS:
        photo = load_sample_image(file)
        edited, enlarged = editor.edit(photo, instruction, task), edit_and_enlarge(editor, photo, instruction, task)
        changed = changed_area.changed_mask(photo, edited)
        changed_shares.append(changed.mean())
        differing.append((enlarged != photo).any(-1).mean())
        enlarged_l1.append(np.abs(enlarged.astype(np.float32) - photo)[~changed].mean() / 255)
        rows.append((instruction, photo, edited, np.repeat(changed[..., None], 3, -1).astype(np.uint8) * 255, enlarged))
    draw_sheet(rows).save(command.result_path(__file__, args.quick, ".jpg"), quality=85)
    figures = {
        "edits": len(rows),
        "changed_share": round(float(np.mean(changed_shares)), 3),
        "changed_share_enlarged": round(float(np.mean(differing)), 3),
        "l1_elsewhere_enlarged": round(float(np.mean(enlarged_l1)), 4),
    }
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
