"""What is read from a picture. Values are indices into the lists of `palette`, or px; confidences lie in [0, 1]."""

from dataclasses import dataclass

from toyworld.scenes.palette import (
    BACKGROUNDS,
    BIG_RADIUS,
    CARD,
    CELLS,
    COLOURS,
    CONDITIONS,
    KINDS,
    LETTERS,
    POSES,
    STYLES,
    TEXTURES,
)


@dataclass(frozen=True)
class Seen:
    """One object."""

    kind: int
    colour: int
    texture: int
    variant: int  # letter of a card, pose of a person, else 0
    cell: int  # whose centre is nearest
    radius: int  # px
    x: int  # px
    y: int  # px
    sure: dict[str, float]  # confidence in kind, colour, texture, variant, cell, big

    @property
    def big(self) -> bool:
        """Big or small."""
        return self.radius >= BIG_RADIUS

    def __str__(self) -> str:
        name = KINDS[self.kind]
        if self.kind >= CARD:
            name += f" {(LETTERS if self.kind == CARD else POSES)[self.variant]}"
        size = "big" if self.big else "small"
        return f"{size} {COLOURS[self.colour]} {TEXTURES[self.texture]} {name}, {CELLS[self.cell]} ({self.x}, {self.y})"


@dataclass(frozen=True)
class Reading:
    """One picture."""

    background: int
    condition: int
    style: int
    objects: tuple[Seen, ...]  # the clearest first
    sure: dict[str, float]  # confidence in background, condition, style, count

    @property
    def count(self) -> int:
        """How many objects."""
        return len(self.objects)

    def __str__(self) -> str:
        things = "; ".join(map(str, self.objects)) or "nothing"
        return f"{things}; {BACKGROUNDS[self.background]}, {CONDITIONS[self.condition]}, {STYLES[self.style]}"
