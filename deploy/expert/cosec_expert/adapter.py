"""The LoRA adapter: made anew or from another, and written as f16."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


class OtherShape(Exception):
    """An adapter that does not fit what is trained."""


def attach(model, rank, alpha, start_from=None):
    """`model` with a fresh adapter on every linear layer but the last, or with a copy of the one in `start_from`."""
    tuned = get_peft_model(
        model,
        LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if start_from is not None:
        weights, expected = load_file(Path(start_from) / WEIGHTS), state(tuned)
        if {name: tuple(t.shape) for name, t in weights.items()} != {
            name: tuple(t.shape) for name, t in expected.items()
        }:
            raise OtherShape(f"{start_from} is no adapter of rank {rank} on all linear layers of this model")
        scale = json.loads((Path(start_from) / "adapter_config.json").read_text())["lora_alpha"]
        if scale != alpha:
            raise OtherShape(f"{start_from} has alpha {scale}, not {alpha}: give --alpha {scale}")
        restore(tuned, {name: tensor.float() for name, tensor in weights.items()})
    return tuned


def state(tuned):
    """Name -> tensor, as PEFT's files have them."""
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in get_peft_model_state_dict(tuned, save_embedding_layers=False).items()
    }


def restore(tuned, weights):
    set_peft_model_state_dict(tuned, weights)


def export(tuned, weights, folder, base_name):
    """Writes `weights` in PEFT's layout, f16; `base_name` is the model that the configuration names."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = tuned.peft_config["default"]
    configuration.base_model_name_or_path, configuration.inference_mode = base_name, True
    configuration.save_pretrained(folder)
    save_file(
        {name: tensor.to(torch.float16).contiguous() for name, tensor in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
