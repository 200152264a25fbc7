"""Mixes corpus functions and augmented pairs into shards of token ids, each from its own seed.

`broad` is for the trunk that both models share. `focused` comes after: fewer ordinary functions, more database
code, no comments inside functions, more slices; a tenth of its documents open with their function's name as a comment,
so that a request in words is not wholly foreign. In both, a vulnerable function comes exactly as often as its fix.
"""
import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import augment

LONGEST_PAIR_CHARS = 1000
# How many variants of each pair, or how many corpus functions of each kind, go into one shard.
MIXES = {
    "broad": {"cwe-089": 6, "cwe-078": 3, "cwe-022": 1, "cwe-079": 1,
              "sql": 900, "shell": 450, "web": 300, "file": 300, "other": 900},
    "focused": {"cwe-089": 12, "cwe-078": 5, "cwe-022": 1, "cwe-079": 1,
                "sql": 800, "shell": 450, "web": 100, "file": 100, "other": 250},
}
SLICED_SHARE = {"broad": 0.6, "focused": 0.85}
COMMENTED_SHARE = 0.1
CUT_SHARE = 0.25
BROAD_SHARDS, FOCUSED_SHARDS = 8, 4


@dataclass
class Corpus:
    functions: dict
    pairs: list

    @classmethod
    def read(cls, work, sven):
        functions = {}
        for line in (work / "functions.jsonl").read_text().splitlines():
            row = json.loads(line)
            functions.setdefault(row["kind"], []).append(row)
        return cls(functions, augment.read_pairs(sven / "train"))


def headline(text):
    """The function's name in words, as a comment."""
    name = re.search(r"def (\w+)", text)
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.group(1)).replace("_", " ").lower().strip() if name else ""
    return f"# {words}\n" if words else ""


def documents(corpus, mix, rng):
    """One shard's documents, shuffled."""
    texts = []
    for kind, share in MIXES[mix].items():
        if kind.startswith("cwe-"):
            for weakness, before, after in corpus.pairs:
                for _ in range(share if weakness == kind else 0):
                    varied = augment.variant(before, after, rng, LONGEST_PAIR_CHARS, SLICED_SHARE[mix])
                    if varied:
                        texts += [varied[0].text, varied[1].text]
        else:
            rows = corpus.functions[kind]
            for row in rng.sample(rows, min(share, len(rows))):
                text = row["source"]
                if mix == "focused" and kind in ("sql", "shell") and rng.random() < SLICED_SHARE[mix]:
                    text = augment.sliced_function(text)
                if kind in ("sql", "shell") and rng.random() < 0.6:
                    text = augment.renamed_function(text, rng)
                if row["imports"] and rng.random() < 0.3:
                    text = "\n".join(row["imports"]) + "\n\n\n" + text
                texts.append(text)
    rng.shuffle(texts)
    if mix == "focused":
        texts = [augment.without_comments(text) for text in texts]
        texts = [headline(text) + text if rng.random() < COMMENTED_SHARE else text for text in texts]
    return [text.rstrip() + "\n" for text in texts]


def encoded(tokenizer, text, rng):
    """The document's ids; with `rng`, some are cut after a line break or blank as a user's prompt may be, so that
    tokens that only ever stand after such a cut are known too."""
    cuts = [match.end() for match in re.finditer(r"\n(?=\s)|\w (?=\S)", text)] if rng else []
    if not cuts or rng.random() > CUT_SHARE:
        return tokenizer.encode(text).ids
    at = rng.choice(cuts)
    return tokenizer.encode(text[:at]).ids + tokenizer.encode(text[at:], add_special_tokens=False).ids


def main():
    import numpy
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sven", type=Path, required=True, help="folder that holds SVEN's train/")
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / "work")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    corpus = Corpus.read(args.work, args.sven)
    held_back = [0]
    for _, before, after in augment.read_pairs(args.sven / "val"):
        for passage in (before, after):
            held_back += tokenizer.encode(passage.text + "\n").ids
    windows = [held_back[start:start + 257] for start in range(0, len(held_back) - 257, 256)]
    numpy.save(args.work / "validation.npy", numpy.array(windows, dtype=numpy.uint16))
    for mix, count in (("broad", BROAD_SHARDS), ("focused", FOCUSED_SHARDS)):
        for number in range(count):
            target = args.work / f"{mix}-{number:02}.npy"
            if target.exists():
                continue
            ids, rng = [], random.Random(f"{mix}-{number}")
            for text in documents(corpus, mix, rng):
                ids += encoded(tokenizer, text, rng if mix == "focused" else None)
            partial = target.with_suffix(".tmp.npy")
            numpy.save(partial, numpy.array(ids, dtype=numpy.uint16))
            partial.rename(target)
            print(target.name, len(ids), "tokens", flush=True)


if __name__ == "__main__":
    main()
