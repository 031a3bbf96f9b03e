"""Records of the reading of an image. Fields without a unit are indices into lists of `palette`."""

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
class SeenObject:
    """An object that was read from an image."""

    kind: int
    colour: int
    texture: int
    variant: int  # letter of a card, pose of a person, else 0
    cell: int  # the cell with the nearest centre
    radius: int  # px
    x: int  # px
    y: int  # px
    confidence: dict[str, float]  # in [0, 1], for kind, colour, texture, variant, cell, big

    @property
    def big(self) -> bool:
        """Whether the object is big."""
        return self.radius >= BIG_RADIUS

    def __str__(self) -> str:
        name = KINDS[self.kind]
        if self.kind >= CARD:
            name += f" {(LETTERS if self.kind == CARD else POSES)[self.variant]}"
        size = "big" if self.big else "small"
        return f"{size} {COLOURS[self.colour]} {TEXTURES[self.texture]} {name}, {CELLS[self.cell]} ({self.x}, {self.y})"


@dataclass(frozen=True)
class Reading:
    """The scene that was read from an image."""

    background: int
    condition: int
    style: int
    objects: tuple[SeenObject, ...]  # in the order in which they were found: the strongest evidence first
    confidence: dict[str, float]  # in [0, 1], for background, condition, style, count

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.objects)

    def __str__(self) -> str:
        objects = "; ".join(map(str, self.objects)) or "nothing"
        return f"{objects}; {BACKGROUNDS[self.background]}, {CONDITIONS[self.condition]}, {STYLES[self.style]}"
