"""Decide which pairs may be mirrored as augmentation."""

from __future__ import annotations

import re

from emuedit.tasks import get_task

SIDED = re.compile(
    r"\b(left|right|(counter|anti)?-?clock|(north|south)?-?(east|west)|mirror|flip|letter|word|text(?!ur)|(hand-?)?writ|wrot|"
    r"typ(e|ing|o)|say|said|read|sign|spell|alphabet|character|number|digit|caption|subtitle|label|logo|slogan|graffiti|initial|"
    r"title|name|licen[cs]e plate|font|headline|watermark|(time-?)?stamp|copyright|trademark|monogram|autograph|emblem|brand|"
    r"badge|sticker|banner|posters?\b|billboard|newspaper|magazine|book cover|menu|ticket|receipt|document|calendar|dates?\b|"
    r"tags?\b|flag|coins?\b|keyboard|bar-?code|qr)|[0-9\"“”„«»]|(?<!\w)['‘’]|['’](?!\w)|"
    r"(?<![\w'’-])(?-i:[B-HJ-Z]|(?<!^)A)(?![\w'’-])",
    re.IGNORECASE,
)
"""Instructions with a word that starts like this, with digits, with quoted text or with a lone capital letter may have another
meaning in a mirrored image, or the image or the result may contain letters or a logo. `I`, and `A` at the start, are words. If in
doubt, a pair is not mirrored."""
OTHER_LANGUAGE = re.compile(
    r"[^\W_a-z0-9]|[\u0300-\u036f]|"
    r"\b(der|das|dem|des|ein|eine[mnrs]?|und|mit|auf|zum|zur|het|een|naar|le|la|les|un|une|du|et|avec|sur|au|dans|el|los|las|una|"
    r"del|con|por|en|il|gli|della|nel|uma|os|da|links|linke[mnrs]?|rechts|rechte[mnrs]?|gauche|droite?s?|izquierd[ao]s?|"
    r"derech[ao]s?|sinistr[aeio]|destr[aeio]|esquerd[ao]s?|direit[ao]s?|venstre)\b",
    re.IGNORECASE,
)
"""Letters and digits beyond ASCII, and frequent words of German, Dutch, French, Spanish, Italian and Portuguese that are no or
rare English words. `SIDED` is English, so it cannot judge such an instruction. Other languages in ASCII are not recognised."""


def has_no_side(instruction: str) -> bool:
    """Whether an instruction is English and means the same in a mirrored image, whatever its task."""
    return SIDED.search(instruction) is None and OTHER_LANGUAGE.search(instruction) is None


def may_flip(task: str, instruction: str) -> bool:
    """Whether the instruction still holds when the images are mirrored."""
    return get_task(task).mirrorable and has_no_side(instruction)
