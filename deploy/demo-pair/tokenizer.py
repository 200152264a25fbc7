"""Trains the byte-level BPE that base and expert share.

Words, numbers, opening brackets and runs of other signs are kept apart, and a line break takes the indentation
after it along, so that a prompt cut after `execute(` or after a finished line ends on a token border.
"""
import argparse
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from shards import Corpus, documents

END = "<|endoftext|>"
PIECES = r"\n+ *| ?[\p{L}_]+| ?\p{N}{1,3}| ?[(\[{]| ?[^\s\p{L}\p{N}_(\[{]+|\s+"


def train(texts, vocabulary):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), min_frequency=2)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, tokenizer.token_to_id(END))])
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sven", type=Path, required=True, help="folder that holds SVEN's train/")
    parser.add_argument("--work", type=Path, default=Path(__file__).resolve().parent / "work")
    parser.add_argument("--vocabulary", type=int, default=4096)
    args = parser.parse_args()
    texts = list(documents(Corpus.read(args.work, args.sven), "broad", random.Random("tokenizer")))
    tokenizer = train(texts, args.vocabulary)
    tokenizer.save(str(args.work / "tokenizer.json"))
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts[:2000]]
    print(f"{tokenizer.get_vocab_size()} tokens, {sum(map(len, texts[:2000])) / sum(len(e.ids) for e in encoded):.2f} characters each")


if __name__ == "__main__":
    main()
