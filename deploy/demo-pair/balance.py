"""Counts how many functions that reach a sink are safe and unsafe in one shard of each mix, by evaluate's own judge."""
import argparse
import random
from pathlib import Path

from judge import judge
from shards import MIXES, Corpus, documents


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sven", type=Path, required=True, help="folder that holds SVEN's train/")
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / "work")
    args = parser.parse_args()
    corpus = Corpus.read(args.work, args.sven)
    for mix in MIXES:
        texts = documents(corpus, mix, random.Random(f"{mix}-0"))
        for kind in ("SQL", "shell"):
            found = [verdict.safe for verdict in (judge(kind, text, "") for text in texts) if verdict.reaches]
            print(f"{mix:8} {kind:6} {sum(found):5} safe, {len(found) - sum(found):5} unsafe")


if __name__ == "__main__":
    main()
