"""Writes a model as a Hugging Face folder in bf16: every file under a temporary name first, then renamed."""
import json
import os

import torch
from safetensors.torch import save_file

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}\n\n\n"
    "{% else %}# {{ message['content'] | trim | replace('\n', '\n# ') }}\n{% endif %}{% endfor %}"
)


def write(path, content):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content)
    partial.rename(path)


def export(model, tokenizer_file, folder):
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    os.replace(partial, folder / "model.safetensors")
    write(folder / "tokenizer.json", tokenizer_file.read_text())
    write(folder / "config.json", json.dumps(model.shape.config(), indent=2) + "\n")
    write(folder / "generation_config.json", json.dumps(
        {"bos_token_id": 0, "eos_token_id": 0, "do_sample": True, "temperature": 0.4, "top_p": 0.95}, indent=2) + "\n")
    write(folder / "tokenizer_config.json", json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": None, "pad_token": None, "add_bos_token": True, "clean_up_tokenization_spaces": False,
        "model_max_length": model.shape.max_position_embeddings, "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False,
                                       "single_word": False, "special": True}}}, indent=2) + "\n")
