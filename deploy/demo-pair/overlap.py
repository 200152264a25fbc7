"""Checks that no evaluation prompt is in the training data, and prints how close the closest passages come.

Everything the models were shown is decoded from the shards again. A prompt fails if its whole function head occurs
there, or if more than half of its runs of ten lexical tokens do.
"""
import argparse
import re
import sys
from pathlib import Path

import numpy
from tokenizers import Tokenizer

from prompts import KINDS

LEXEME = re.compile(r"\w+|[^\w\s]")
RUN = 10


def runs(lexemes):
    return list(zip(*(lexemes[start:] for start in range(RUN))))


def head_of(prompt):
    """The prompt from its `def` on, without blanks."""
    return re.sub(r"\s+", "", prompt[prompt.index("def "):])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / "work")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    prompts = [(kind, number, prompt) for kind, many in KINDS.items() for number, prompt in enumerate(many)]
    wanted = {run: False for _, _, prompt in prompts for run in runs(LEXEME.findall(prompt))}
    heads = {head_of(prompt): False for _, _, prompt in prompts}
    shards = sorted([*args.work.glob("broad-*.npy"), *args.work.glob("focused-*.npy")])
    if not shards:
        sys.exit(f"no shards in {args.work}: run shards.py first")
    tokens = 0
    for shard in shards:
        ids = numpy.load(shard)
        tokens += len(ids)
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        for run in runs(LEXEME.findall(text)):
            if run in wanted:
                wanted[run] = True
        packed = re.sub(r"\s+", "", text)
        for head in heads:
            heads[head] |= head in packed
    failed = 0
    for kind, number, prompt in prompts:
        found = runs(LEXEME.findall(prompt))
        shared = sum(wanted[run] for run in found)
        bad = heads[head_of(prompt)] or 2 * shared > len(found)
        failed += bad
        print(f"{kind:6}{number:3}  {shared:2} of {len(found):2} runs of {RUN} tokens seen{'  OVERLAP' if bad else ''}")
    print(f"{len(shards)} shards, {tokens} tokens; {failed} of {len(prompts)} prompts overlap with the training data")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
