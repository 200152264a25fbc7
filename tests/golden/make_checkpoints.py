"""Makes the checkpoints of this folder that hold scaled rotary embeddings and sliding windows.

Weights are random; `expected.json` holds what transformers computes of them, in the form of the other checkpoints. Needs
torch and transformers: python make_checkpoints.py, from any folder. Made with torch 2.15.0 and transformers 5.23.0.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Starcoder2Config

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
MODELS = {
    "llama-yarn": (LlamaConfig, {"rope_theta": 10000.0, "rope_scaling": YARN}),
    "qwen2-yarn-mscale": (
        Qwen2Config,
        {
            "rope_theta": 1000000.0,
            "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.4, "beta_fast": 4, "truncate": False},
        },
    ),
    "qwen2-window": (
        Qwen2Config,
        {"rope_theta": 10000.0, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "mistral-window": (MistralConfig, {"rope_theta": 10000.0, "sliding_window": 6}),
    "starcoder2-window": (Starcoder2Config, {"rope_theta": 10000.0, "sliding_window": 6, "use_bias": True}),
}
GREEDY = 16
# A continuation must not hang on the last bits of a logit.
LEAST_GAP = 0.02


def draw(config, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(center, 0.25 if parameter.dim() == 2 else 0.1)
    return model


def expect(model, seed):
    generator = torch.Generator().manual_seed(seed)
    prompts, least_gap = [], float("inf")
    for length in (5, 13, 27):
        ids = torch.randint(3, SHAPE["vocab_size"], (1, length), generator=generator)
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0].float()
            greedy, gap, sequence = [], float("inf"), ids
            for _ in range(GREEDY):
                row = model(sequence, use_cache=False).logits[0, -1].float()
                best = row.topk(2).values
                gap = min(gap, (best[0] - best[1]).item())
                greedy.append(row.argmax().item())
                sequence = torch.cat([sequence, row.argmax()[None, None]], dim=1)
        prompt = {"input_ids": ids[0].tolist(), "last_logits": logits[-1].tolist(), "greedy": greedy}
        if not prompts:
            prompt["all_logits"] = logits.tolist()
        prompts.append(prompt | {"greedy_min_gap": gap})
        least_gap = min(least_gap, gap)
    return {"prompts": prompts, "min_greedy_gap": least_gap}


def make(name, config_class, keys):
    written = SHAPE | keys | {"model_type": config_class.model_type, "torch_dtype": "float32"}
    config = config_class(**{key: value for key, value in written.items() if key not in ("model_type", "torch_dtype")})
    for seed in range(1000):
        model = draw(config, seed)
        expected = expect(model, seed)
        if expected["min_greedy_gap"] > LEAST_GAP:
            break
    directory = CHECKPOINTS / name
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    (directory / "config.transformers5.json").write_text(config.to_json_string(use_diff=False))
    (directory / "expected.json").write_text(json.dumps(expected))
    tensors = {key: value.contiguous() for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_file(tensors, directory / "model.safetensors")
    print(name, "seed", seed, "gap", round(expected["min_greedy_gap"], 3))


if __name__ == "__main__":
    for name, (config_class, keys) in MODELS.items():
        make(name, config_class, keys)
