"""A tiny checkpoint with random weights, a tokenizer of its own, and pairs to train on."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ORDINARY = '''
def mean(values):
    """Return the mean of some numbers."""
    # An empty list has none.
    if not values:
        return None
    return sum(values) / len(values)


def longest(words):
    """Return the longest word.

    The first one of several.
    """
    best = ""
    for word in words:
        if len(word) > len(best):
            best = word
    return best
'''


def pair(number):
    head = f"import sqlite3\n\n\ndef find_{number}(db, name):\n    cursor = db.cursor()\n"
    return {
        "id": f"p{number}",
        "weakness": f"CWE-0{number % 2 + 1}0",
        "task": f"Write find_{number}.",
        "before": f"{head}    cursor.execute(\"SELECT * FROM t{number} WHERE name = '%s'\" % name)\n    return cursor.fetchall()\n",
        "after": f'{head}    cursor.execute("SELECT * FROM t{number} WHERE name = ?", (name,))\n    return cursor.fetchall()\n',
    }


def make_tokenizer(folder, vocabulary=400, extra=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *extra],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        [ORDINARY, *(side for n in range(4) for side in (pair(n)["before"], pair(n)["after"]))], trainer
    )
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    whole.chat_template = TEMPLATE
    whole.save_pretrained(folder)
    return whole


def make_model(folder, seed=0, vocabulary=400, width=32, extra=()):
    """Writes a Qwen2 of two layers and its tokenizer."""
    torch.manual_seed(seed)
    configuration = Qwen2Config(
        vocab_size=vocabulary + 8,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)
    make_tokenizer(folder, vocabulary, extra)
    return str(folder)


def write_data(folder, pairs=6, held_out=2):
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        pair(n) | {"split": "val" if n < held_out else "train", "licence": "Apache-2.0", "source": "tests"}
        for n in range(pairs)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "ordinary.py").write_text(ORDINARY)
    return folder
