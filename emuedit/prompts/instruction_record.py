"""The record of an instruction, from a caption and a valid answer."""

from emuedit.data.records import Caption, Instruction
from emuedit.prompts.answer_schema import Direction, ProposedEdit, Question
from emuedit.runtime import seed_for
from emuedit.tasks import get_task


def build_instruction(caption: Caption, question: Question, edit: ProposedEdit, seed: int, llm: str, answer: str) -> Instruction:
    """The record of an edit. `seed`: that of the question; `llm`: its spec; `answer`: its text.

    For map-to-image edits and reversed tasks, the image generated first is the pair's target. An annotated task uses the
    caption's image, if it has one; the base model can only edit what it generated.
    """
    image, image_hash = (caption.image, caption.image_hash) if get_task(question.task).annotated else (None, None)
    source, target = caption.text, edit.output_caption
    if question.direction == "from_map":
        source, target = target, source
    return Instruction(
        caption_id=caption.id,
        task=question.task,
        text=edit.instruction,
        source_caption=source,
        target_caption=target,
        source_object=edit.original_object,
        target_object=edit.edited_object,
        reverse=get_task(question.task).reversed or question.direction == "from_map",
        seed=seed,
        llm=llm,
        answer=answer,
        image=image,
        image_hash=image_hash,
    )


def choose_direction(caption: Caption, task: str) -> Direction | None:
    """The direction of a bidirectional task: each for half of the captions, at random. None for other tasks."""
    if not get_task(task).bidirectional:
        return None
    return "from_map" if seed_for("instructions", "direction", caption.id, task) % 2 else "to_map"
