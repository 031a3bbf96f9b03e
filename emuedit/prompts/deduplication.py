"""Find duplicates among instructions, and keep the tasks in balance."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from emuedit.data.records import Drop, Instruction
from emuedit.prompts.diversity import normalize_text
from emuedit.runtime import seed_for


@dataclass
class Deduplicator:
    """Finds duplicates and keeps the tasks in balance. Must be used in the order of the captions."""

    max_repeats: int
    max_per_task: int
    seen: set[int] = field(default_factory=set)
    repeats: Counter[tuple[str, str]] = field(default_factory=Counter)
    n_kept: Counter[str] = field(default_factory=Counter)

    def reason_to_drop(self, instruction: Instruction) -> str | None:
        """`duplicate` (same task, instruction and caption), `repeated` (same words too often), `full`, or None to keep it."""
        if _duplicate_key(instruction) in self.seen:
            return "duplicate"
        if self.repeats[instruction.task, normalize_text(instruction.text)] >= self.max_repeats:
            return "repeated"
        return "full" if self.n_kept[instruction.task] >= self.max_per_task else None

    def keep(self, instruction: Instruction) -> None:
        """Count an instruction that is kept."""
        self.seen.add(_duplicate_key(instruction))
        self.repeats[instruction.task, normalize_text(instruction.text)] += 1
        self.n_kept[instruction.task] += 1

    def filter(self, answers: Iterator[Instruction | Drop]) -> tuple[list[Instruction], list[Drop]]:
        """Split into kept instructions and drops, including the drops among the answers."""
        kept, drops = [], []
        for answer in answers:
            if isinstance(answer, Drop):
                drops.append(answer)
            elif reason := self.reason_to_drop(answer):
                drops.append(Drop(answer.text, reason, f"{answer.caption_id}/{answer.task}", -1))
            else:
                self.keep(answer)
                kept.append(answer)
        return kept, drops


def _duplicate_key(instruction: Instruction) -> int:
    texts = normalize_text(instruction.text), normalize_text(instruction.source_caption)
    photograph = filter(None, [instruction.image_hash])  # two with the same caption are not the same
    return seed_for("instructions", "mark", instruction.task, *texts, *photograph)
