"""Windows of tokens with the places where they are scored.

A place is the index of the token that is predicted. Texts come in three forms: `code` as it is, `body` from the first
function or class on (without the imports, which give the fix away), and `chat`, the model's own template with a
request and a code fence. Window and places are a function of the text, the form and the random numbers alone.
"""

import difflib
import re
from dataclasses import dataclass

FORMS = ("code", "body", "chat")
SHARE_BEFORE = 0.6
"""Of a window, what stands before the change where not all fits."""
BODY_STARTS = 6
FENCES = {"c++": "cpp", "unknown": ""}
IMPORT = re.compile(r"\s*(import|from)\s")
SIGNATURE = re.compile(r"^(?:async )?def (?!main\b)\w+\([^)]*\)(?=:)", re.MULTILINE)
DEFINITION = re.compile(r"^(@|def |async def |class )", re.MULTILINE)


class TooLong(Exception):
    """The change does not fit into a window of this form."""


@dataclass(frozen=True)
class Fork:
    """Where the two versions part: the place, the fixed side's token and the vulnerable side's."""

    place: int
    fixed: int
    vulnerable: int


@dataclass(frozen=True)
class Example:
    key: tuple
    ids: tuple
    learnt: tuple
    """Places of tokens that the fix changed."""
    kept: tuple
    """Places at which the frozen model's distribution is to stay."""
    fork: Fork | None
    """None for ordinary code."""

    @property
    def frozen_places(self):
        """Where the frozen model is asked."""
        return (*self.kept, self.fork.place) if self.fork else self.kept

    @property
    def places(self):
        """Where the tuned model is asked: `learnt`, then the frozen model's."""
        return (*self.learnt, *self.frozen_places)


@dataclass(frozen=True)
class Sizes:
    window: int = 160
    chat_window: int = 256
    ordinary_window: int = 112
    kept: int = 32
    ordinary_kept: int = 40


def encoded(tokenizer, text):
    """(ids, (start, end) of each in characters)"""
    result = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return result["input_ids"], result["offset_mapping"]


def chat_head(tokenizer, task, language):
    """The template up to where the code of an answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise TooLong("the tokenizer has no chat template")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": task}], tokenize=False, add_generation_prompt=True
    )
    return f"{asked}```{FENCES.get(language, language)}\n"


def _first_line(pair):
    return next(
        line.strip()
        for line in pair.after.splitlines()
        if line.strip() and not line.strip().startswith(("@", "#", "//"))
    )


def asked(pair, rng):
    """The request of a chat; for code that states none its first line. Half of the others name the function that is
    wanted."""
    if not pair.task:
        return f"Write this {pair.language} function:\n{_first_line(pair)}"
    signatures = SIGNATURE.findall(pair.after)
    if pair.language == "python" and len(signatures) == 1 and rng.random() < 0.5:
        return f"{pair.task} Its signature is `{signatures[0]}`."
    return pair.task


def hunks(before, after):
    """(index in `before`, index in `after`) of each place where the token sequences part, first to last."""
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    matcher = difflib.SequenceMatcher(None, before[same:], after[same:], autojunk=False)
    return [
        (same + bounds[0], same + bounds[2]) for operation, *bounds in matcher.get_opcodes() if operation != "equal"
    ]


def _imports(code):
    return [line for line in code.splitlines() if IMPORT.match(line)]


def _line_at(text, character):
    return text[text.rfind("\n", 0, character) + 1 :]


def find_fork(vulnerable_ids, fixed_ids, fixed_text, offsets, in_imports):
    """The first fork that is not in an import; one in an import where `in_imports` allows it or there is no other."""
    forks = []
    for old, new in hunks(vulnerable_ids, fixed_ids):
        if old < len(vulnerable_ids) and new < len(fixed_ids) and new > 0 and vulnerable_ids[old] != fixed_ids[new]:
            forks.append(
                (
                    bool(IMPORT.match(_line_at(fixed_text, offsets[new][0]))),
                    Fork(new, fixed_ids[new], vulnerable_ids[old]),
                )
            )
    if not forks:
        return None
    return next((fork for is_import, fork in forks if in_imports or not is_import), forks[0][1])


def _text_of(pair, form, tokenizer, rng):
    """(head, where in the code the text begins, for either version)"""
    starts = [DEFINITION.search(side) for side in (pair.before, pair.after)]
    bodies = [side[start.start() :] for side, start in zip((pair.before, pair.after), starts) if start]
    if form == "code" and _imports(pair.before) != _imports(pair.after) and len(set(bodies)) == 2:
        form = "body"
    if form == "chat":
        return chat_head(tokenizer, asked(pair, rng), pair.language), 0, 0
    if form == "body":
        if all(starts):
            return "", starts[0].start(), starts[1].start()
    return "", 0, 0


def _line_start(offsets, text, first):
    """The first token from `first` on that begins a line or its line break, if one comes soon."""
    for index in range(first, min(first + 24, len(offsets))):
        start = offsets[index][0]
        if start == 0 or "\n" in text[start - 1 : start + 1]:
            return index
    return first


def _window(form, offsets, text, fork, sizes):
    if form == "chat":
        if fork + 12 > sizes.chat_window:
            raise TooLong(f"the change begins at token {fork}")
        return 0, min(len(offsets), sizes.chat_window)
    if len(offsets) <= sizes.window:
        return 0, len(offsets)
    first = max(0, fork - int(sizes.window * SHARE_BEFORE))
    if first > 0:
        first = min(_line_start(offsets, text, first), fork - 1)
    return first, min(len(offsets), first + sizes.window)


def of_pair(tokenizer, pair, form, sizes, rng):
    """The example of a fix pair. Raises TooLong where the form has no room for it or the versions have no fork."""
    head, old_start, new_start = _text_of(pair, form, tokenizer, rng)
    tail = "```" if form == "chat" else ""
    text = head + pair.after[new_start:] + tail
    ids, offsets = encoded(tokenizer, text)
    old_ids, _ = encoded(tokenizer, head + pair.before[old_start:] + tail)
    fork = find_fork(old_ids, ids, text, offsets, in_imports=form == "chat")
    if fork is None:
        raise TooLong("no token of the fixed version parts from the vulnerable one")
    first, last = _window(form, offsets, text, fork.place, sizes)
    spans = [(start + len(head) - new_start, end + len(head) - new_start) for start, end in pair.changed_after]
    changed = {
        index for index, (start, end) in enumerate(offsets) if any(start < high and low < end for low, high in spans)
    } | {fork.place}
    answer = len(head)
    learnt = sorted(index - first for index in changed if first < index < last)
    others = [index - first for index in range(first + 1, last) if index not in changed and offsets[index][0] >= answer]
    kept = sorted(rng.sample(others, min(sizes.kept, len(others))))
    return Example(
        (pair.id, form),
        tuple(ids[first:last]),
        tuple(learnt),
        tuple(kept),
        Fork(fork.place - first, fork.fixed, fork.vulnerable),
    )


def of_ordinary(tokenizer, snippet, form, sizes, rng):
    """The example of ordinary code: the body's first tokens and comments' starts always, others by chance."""
    head = chat_head(tokenizer, snippet.task, "python") if form == "chat" else ""
    text = head + snippet.code
    ids, offsets = encoded(tokenizer, text)
    body = next((index for index, (start, _) in enumerate(offsets) if start >= len(head) + snippet.body), len(ids) - 1)
    first = max(0, body - sizes.ordinary_window // 2) if form != "chat" else max(0, body - sizes.chat_window + 16)
    last = min(len(ids), first + (sizes.chat_window if form == "chat" else sizes.ordinary_window))
    certain, others = [], []
    for index in range(first + 1, last):
        start = offsets[index][0]
        if start < len(head):
            continue
        begins_comment = (
            text[start:].lstrip(" \t").startswith("#") and not text[text.rfind("\n", 0, start) + 1 : start].strip()
        )
        (certain if body - 1 <= index < body + BODY_STARTS or begins_comment else others).append(index - first)
    certain = certain[: sizes.ordinary_kept]
    kept = sorted([*certain, *rng.sample(others, min(sizes.ordinary_kept - len(certain), len(others)))])
    if not kept:
        raise TooLong("nothing to score")
    return Example((snippet.id, form, first), tuple(ids[first:last]), (), tuple(kept), None)
