"""llama.cpp under the same load as the worker: told by JSON lines on standard input, answers on standard output.

    llama_peer.py convert CHECKPOINT FILE FORMAT THREADS    the checkpoint's weights as GGUF
    llama_peer.py serve FILE THREADS SEQUENCES TOKENS       decodes up to SEQUENCES sequences of up to TOKENS tokens
"""

import ctypes
import json
import pathlib
import sys
import time

import gguf
import llama_cpp
import numpy

PREFILL_TOKENS = 1024
BATCH_TOKENS = 512


class Checkpoint:
    """config.json and model.safetensors with tensors in bf16."""

    def __init__(self, directory):
        self.config = json.loads((directory / "config.json").read_text())
        self.data = numpy.memmap(directory / "model.safetensors", dtype=numpy.uint8, mode="r")
        header_bytes = int(self.data[:8].view(numpy.uint64)[0])
        self.tensors = json.loads(bytes(self.data[8 : 8 + header_bytes]))
        self.start = 8 + header_bytes

    def get(self, name):
        entry = self.tensors[name]
        assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
        first, end = (self.start + offset for offset in entry["data_offsets"])
        bits = numpy.array(self.data[first:end]).view(numpy.uint16).astype(numpy.uint32) << 16
        return bits.view(numpy.float32).reshape(entry["shape"])


def llama_tensors(checkpoint):
    """(GGUF name, values): llama.cpp rotates neighbours, so rows of queries and keys change places."""
    heads = checkpoint.config["num_attention_heads"]

    def neighbours(matrix):
        return matrix.reshape(heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)

    yield "token_embd.weight", checkpoint.get("model.embed_tokens.weight")
    yield "output_norm.weight", checkpoint.get("model.norm.weight")
    yield "output.weight", checkpoint.get("lm_head.weight")
    for layer in range(checkpoint.config["num_hidden_layers"]):
        here = lambda name: checkpoint.get(f"model.layers.{layer}.{name}.weight")
        yield f"blk.{layer}.attn_norm.weight", here("input_layernorm")
        yield f"blk.{layer}.ffn_norm.weight", here("post_attention_layernorm")
        yield f"blk.{layer}.attn_q.weight", neighbours(here("self_attn.q_proj"))
        yield f"blk.{layer}.attn_k.weight", neighbours(here("self_attn.k_proj"))
        yield f"blk.{layer}.attn_v.weight", here("self_attn.v_proj")
        yield f"blk.{layer}.attn_output.weight", here("self_attn.o_proj")
        yield f"blk.{layer}.ffn_gate.weight", here("mlp.gate_proj")
        yield f"blk.{layer}.ffn_up.weight", here("mlp.up_proj")
        yield f"blk.{layer}.ffn_down.weight", here("mlp.down_proj")


def gpt_neox_tensors(checkpoint):
    """(GGUF name, values): queries, keys and values one behind the other instead of head by head."""
    heads = checkpoint.config["num_attention_heads"]

    def ungrouped(values):
        width = values.shape[0] // heads // 3
        return values.reshape(heads, 3, width, -1).swapaxes(0, 1).reshape(values.shape)

    yield "token_embd.weight", checkpoint.get("gpt_neox.embed_in.weight")
    yield "output.weight", checkpoint.get("embed_out.weight")
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }
    for part in ("weight", "bias"):
        yield f"output_norm.{part}", checkpoint.get(f"gpt_neox.final_layer_norm.{part}")
        for layer in range(checkpoint.config["num_hidden_layers"]):
            for name, target in names.items():
                values = checkpoint.get(f"gpt_neox.layers.{layer}.{name}.{part}")
                yield f"blk.{layer}.{target}.{part}", ungrouped(values) if target == "attn_qkv" else values


def describe(writer, config):
    width = config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_attention_heads"])
    writer.add_rope_dimension_count(int(width * config.get("rotary_pct", 1.0)))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    if config["model_type"] == "llama":
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(1e-5)
        writer.add_parallel_residual(True)


def convert(directory, file, name, threads):
    if name in ("q8_0", "q4_k"):
        source = directory / "f16.gguf"
        if not source.is_file():
            convert(directory, source, "f16", threads)
        return quantise(source, file, name, threads)
    checkpoint = Checkpoint(directory)
    family = checkpoint.config["model_type"]
    tensors, architecture = {"llama": (llama_tensors, "llama"), "gpt_neox": (gpt_neox_tensors, "gptneox")}[family]
    kind = {
        "f32": gguf.GGMLQuantizationType.F32,
        "f16": gguf.GGMLQuantizationType.F16,
        "bf16": gguf.GGMLQuantizationType.BF16,
    }[name]
    unfinished = file.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, architecture, use_temp_file=True)
    describe(writer, checkpoint.config)
    for target, values in tensors(checkpoint):
        own = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(target, gguf.quants.quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(file)


def quantise(source, file, name, threads):
    """llama.cpp's own quantisation, every matrix in the same format (its `--pure`).

    Where a row is no multiple of 256 numbers llama.cpp takes Q5_0 in place of Q4_K.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S}[name]
    params.nthread = threads
    params.pure = True
    unfinished = file.with_suffix(".part")
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(unfinished).encode(), ctypes.byref(params))
    assert not failed, f"llama.cpp cannot quantise {source}"
    unfinished.rename(file)


class Context:
    """Sequences of one model. Every sequence has memory of its own, as llama.cpp's server gives it."""

    def __init__(self, model, vocabulary, threads, sequences, tokens):
        self.vocabulary = vocabulary
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * tokens
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, params)
        assert self.context, "llama.cpp cannot make a context"
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def run(self, items):
        """Feeds (token, position, sequence, whether its logits are wanted); the most probable token of each such row."""
        batch = self.batch
        batch.n_tokens = len(items)
        for index, (token, position, sequence, wanted) in enumerate(items):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        failed = llama_cpp.llama_decode(self.context, batch)
        assert not failed, f"llama_decode gave {failed}"
        rows = [index for index, item in enumerate(items) if item[3]]
        return [self.best(index) for index in rows]

    def best(self, index):
        logits = llama_cpp.llama_get_logits_ith(self.context, index)
        return int(numpy.argmax(numpy.ctypeslib.as_array(logits, (self.vocabulary,))))

    def cut(self, sequence, tokens):
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, tokens, -1)


class Server:
    def __init__(self, file, threads, sequences, tokens):
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        assert self.model, f"llama.cpp cannot load {file}"
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.prompts = Context(self.model, self.vocabulary, threads, 1, PREFILL_TOKENS)
        self.sequences = Context(self.model, self.vocabulary, threads, sequences, tokens)
        self.opened = 0
        self.next_prompt = 0

    def prompt(self, tokens):
        self.next_prompt += 1
        return [(self.next_prompt * 7919 + position * 31) % self.vocabulary for position in range(tokens)]

    def prefill(self, tokens):
        items = [(token, position, 0, position == tokens - 1) for position, token in enumerate(self.prompt(tokens))]
        started = time.perf_counter()
        for first in range(0, tokens, BATCH_TOKENS):
            best = self.prompts.run(items[first : first + BATCH_TOKENS])
        elapsed = time.perf_counter() - started
        self.prompts.cut(0, 0)
        return {"token": best[0], "seconds": elapsed}

    def open(self, sequences, tokens):
        self.opened = tokens
        for sequence in range(sequences):
            self.sequences.run([(token, at, sequence, False) for at, token in enumerate(self.prompt(tokens))])
        return {}

    def decode(self, sequences, seconds, most_steps):
        for sequence in range(sequences):
            self.sequences.cut(sequence, self.opened)
        tokens = [1 + sequence for sequence in range(sequences)]
        steps = []
        while sum(steps) < seconds and len(steps) < most_steps:
            started = time.perf_counter()
            position = self.opened + len(steps)
            tokens = self.sequences.run([(token, position, sequence, True) for sequence, token in enumerate(tokens)])
            steps.append(time.perf_counter() - started)
        return {"steps": steps}

    def run(self):
        print(json.dumps({"ready": True}))
        for line in sys.stdin:
            question = json.loads(line)
            operation = {"prefill": self.prefill, "open": self.open, "decode": self.decode}[question.pop("op")]
            print(json.dumps(operation(**question)))


if __name__ == "__main__":
    command, path, *rest = sys.argv[1:]
    if command == "convert":
        convert(pathlib.Path(path), pathlib.Path(rest[0]), rest[1], int(rest[2]))
    else:
        Server(path, *map(int, rest)).run()
