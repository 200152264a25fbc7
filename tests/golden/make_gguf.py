"""Makes the GGUF files of the folder `gguf`: llama.cpp writes them and says what they compute.

Weights are random. llama.cpp converts them to F16, Q8_0 or Q4_K and computes `expected.json`, in the form of the
checkpoints. Needs cyllama and gguf from PyPI: python make_gguf.py, from any folder. Made with cyllama 0.2.18, which holds
llama.cpp b9190, and gguf 0.19.0.
"""

import json
import tempfile
from pathlib import Path

import gguf
import numpy
from cyllama.llama import llama_cpp

FOLDER = Path(__file__).parent / "gguf"
VOCABULARY = 96
PROMPTS = ([7, 3, 90, 41, 15, 66, 2, 30, 11], [50, 51, 52], [1])
GREEDY = 16
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
# Numbers of llama.cpp's enumerations: llama_ftype, ggml_type and llama_flash_attn_type.
F16, Q8_0, Q4_K_S = 1, 7, 14
F32 = 0
FLASH_ATTENTION_OFF = 0
# Architecture, width, layers and the format that llama.cpp gives its matrices. Rows of Q4_K are whole blocks of 256.
MODELS = {
    "llama-q4_k": ("llama", 256, 1, Q4_K_S),
    "qwen2-q8_0": ("qwen2", 32, 2, Q8_0),
    "starcoder2-f16": ("starcoder2", 32, 1, F16),
}


def tensors(architecture, width, layers, numbers):
    """(name, values) of a model of 4 heads, two of which share keys and values."""

    def matrix(name, outputs, inputs):
        yield f"{name}.weight", numbers.normal(0, 1.2 / inputs**0.5, (outputs, inputs))

    def norm(name):
        yield f"{name}.weight", numbers.normal(1, 0.1, width)
        if architecture == "starcoder2":
            yield f"{name}.bias", numbers.normal(0, 0.1, width)

    def linear(name, outputs, inputs, biased=architecture == "starcoder2"):
        yield from matrix(name, outputs, inputs)
        if biased:
            yield f"{name}.bias", numbers.normal(0, 0.1, outputs)

    yield "token_embd.weight", numbers.normal(0, 1, (VOCABULARY, width))
    yield from norm("output_norm")
    yield from matrix("output", VOCABULARY, width)
    for layer in range(layers):
        block = f"blk.{layer}"
        yield from norm(f"{block}.attn_norm")
        yield from norm(f"{block}.ffn_norm")
        for name, outputs in {"attn_q": width, "attn_k": width // 2, "attn_v": width // 2}.items():
            yield from linear(f"{block}.{name}", outputs, width, architecture != "llama")
        yield from linear(f"{block}.attn_output", width, width)
        yield from linear(f"{block}.ffn_up", width, width)
        yield from linear(f"{block}.ffn_down", width, width)
        if architecture != "starcoder2":
            yield from matrix(f"{block}.ffn_gate", width, width)


def write(file, architecture, width, layers):
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // 4)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    if architecture == "starcoder2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
    for name, values in tensors(architecture, width, layers, numpy.random.default_rng(1)):
        writer.add_tensor(name, values.astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source, file, kind):
    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype, params.pure = kind, True
    llama_cpp.model_quantize(str(source), str(file), params)


class Model(llama_cpp.LlamaModel):
    """What LlamaContext asks of a model, and LlamaModel lacks."""

    n_vocab = VOCABULARY


def expect(file):
    params = llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = 64
    params.flash_attn_type, params.type_k, params.type_v = FLASH_ATTENTION_OFF, F32, F32
    context = llama_cpp.LlamaContext(Model(str(file)), params)

    def feed(tokens, start):
        batch = llama_cpp.LlamaBatch(n_tokens=64, embd=0, n_seq_max=1)
        for index, token in enumerate(tokens):
            batch.add(token, start + index, [0], True)
        context.decode(batch)
        return [numpy.array(context.get_logits_ith(index)[:VOCABULARY]) for index in range(len(tokens))]

    prompts = []
    for tokens in PROMPTS:
        context.kv_cache_clear()
        rows = feed(tokens, 0)
        greedy = [int(rows[-1].argmax())]
        while len(greedy) < GREEDY:
            greedy.append(int(feed(greedy[-1:], len(tokens) + len(greedy) - 1)[0].argmax()))
        numbers = [[float(f"{logit:.7g}") for logit in row] for row in rows]
        prompts.append({"input_ids": tokens, "last_logits": numbers[-1], "all_logits": numbers, "greedy": greedy})
    return {"prompts": prompts}


def main():
    for name, (architecture, width, layers, kind) in MODELS.items():
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "f32.gguf"
            write(source, architecture, width, layers)
            quantise(source, folder / "model.gguf", kind)
        # Of no use but that there is one: prompts are ids.
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER) + "\n")
        expected = expect(folder / "model.gguf")
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
