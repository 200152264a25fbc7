"""The notation of a template and how it becomes pairs.

    {-VULNERABLE-|-FIXED-}     where the versions differ; either side may be empty or span lines
    {?ONE-/-OTHER?}            where renders differ, the same in both versions
    $one                       a word of the cast, the same throughout a render; $$ is a dollar

`-/-` separates alternatives on either side of `-|-` too; all places of one render take the alternative of the same
number.
"""

import difflib
import random
import re
from dataclasses import dataclass

from .casts import cast

DIFFERENCE = re.compile(r"\{-(.*?)-\|-(.*?)-\}", re.DOTALL)
CHOICE = re.compile(r"\{\?(.*?)\?\}", re.DOTALL)
WORD = re.compile(r"\$(\$|[a-z]+)")
ARTICLE = re.compile(r"\ba (?=[aeiou])")
LICENCE = "Apache-2.0"
SOURCE = "deploy/expert/data"
ALIKE = 0.97
"""Of two pairs of one template, what their texts may share at most."""
SPARE = 8


class TemplateError(Exception):
    """A template that cannot be rendered."""


@dataclass(frozen=True)
class Template:
    name: str
    task: str
    """What a user would ask a chat model for; it never says which version is wanted."""
    text: str
    renders: int = 3
    held_out: bool = False
    """Its pairs are for early stopping, never trained on."""


def alternative(side, number):
    parts = side.split("-/-")
    return parts[number % len(parts)]


def filled(template, text, words):
    def word(match):
        if match[1] == "$":
            return "$"
        if match[1] not in words:
            raise TemplateError(f"{template.name}: no word ${match[1]}")
        return words[match[1]]

    return WORD.sub(word, text)


def render(weakness, template, number):
    """The pair of one render; the same for the same arguments."""
    rng = random.Random(f"{weakness}/{template.name}/{number}")
    words = cast(f"{weakness}/{template.name}", number, rng)

    def shared(text):
        return filled(template, CHOICE.sub(lambda match: rng.choice(match[1].split("-/-")), text), words)

    text = shared(template.text)
    if not DIFFERENCE.search(text):
        raise TemplateError(f"{template.name}: both versions are the same")
    before = DIFFERENCE.sub(lambda match: alternative(match[1], number), text)
    after = DIFFERENCE.sub(lambda match: alternative(match[2], number), text)
    return {
        "id": f"{weakness.lower()}-{template.name}-{number}",
        "weakness": weakness,
        "language": "python",
        "group": f"{weakness.lower()}-{template.name}",
        "split": "val" if template.held_out else "train",
        "task": ARTICLE.sub("an ", shared(template.task)),
        "before": before.strip("\n") + "\n",
        "after": after.strip("\n") + "\n",
        "licence": LICENCE,
        "source": SOURCE,
    }


def likeness(one, other):
    """What two pairs share, from 0 to 1, word by word."""
    sides = [(pair["before"] + pair["after"]).split() for pair in (one, other)]
    return difflib.SequenceMatcher(None, *sides, autojunk=False).ratio()


def pairs(weakness, templates):
    """Renders of `templates`; one that is nearly an earlier one of its template gives way to the next."""
    for template in templates:
        found = []
        for number in range(template.renders + SPARE):
            pair = render(weakness, template, number)
            if len(found) < template.renders and all(likeness(pair, earlier) <= ALIKE for earlier in found):
                found.append(pair)
        yield from found
