"""The side of PEFT in test/peft/run.

    check.py make MODEL DIRECTORY MERGED    save a random adapter for MODEL, as PEFT does, and
                                            MODEL with the adapter merged into its matrices
    check.py load MODEL DIRECTORY SAVED     load an adapter, and compare it with the files it comes from
    check.py compare BESIDE MERGED PLAIN    logits with the adapter, of the merged model, without
"""

import os
import sys

import numpy
import peft
import torch
from safetensors.torch import load_file, save_file

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
           "to_q", "to_kv", "to_out", "ff.1", "ff.3"]
PREFIX = "lang_encoder."
# Of logits: products are summed in another order.
TOLERANCE = 1e-4


class CausalModel(torch.nn.Module):
    """What PEFT looks for in a model of task_type CAUSAL_LM."""

    def prepare_inputs_for_generation(self):
        raise NotImplementedError


def language_model(tensors):
    """The matrices of the language model as modules at their names; nothing that computes."""
    root = CausalModel()
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX) or not name.endswith(".weight") or tensor.dim() != 2:
            continue
        path = name[len(PREFIX):-len(".weight")].split(".")
        module = root
        for part in path[:-1]:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        linear = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        linear.weight.data = tensor.clone()
        module.add_module(path[-1], linear)
    return root


def make(model, directory, merged):
    tensors = load_file(f"{model}/model.safetensors")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS)
    adapted = peft.get_peft_model(language_model(tensors), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # PEFT begins with zeros, which would change nothing
            parameter.data = torch.randn_like(parameter) * 0.05
    adapted.save_pretrained(directory)
    for name, parameter in adapted.merge_and_unload().named_parameters():
        tensors[PREFIX + name] = parameter.data.contiguous()
    os.makedirs(merged)
    save_file(tensors, f"{merged}/model.safetensors")
    print(f"PEFT saves an adapter on {len(TARGETS)} kinds of matrices")


def load(model, directory, saved):
    tensors = load_file(f"{model}/model.safetensors")
    adapted = peft.PeftModel.from_pretrained(language_model(tensors), directory)
    expected = load_file(f"{saved}/adapter_model.safetensors")
    found = peft.get_peft_model_state_dict(adapted)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    print(f"PEFT loads what mmgpt exported: all {len(expected)} tensors are the same")


def compare(beside, merged, plain):
    beside, merged, plain = (numpy.load(path) for path in (beside, merged, plain))
    difference = abs(beside - merged).max()
    assert difference < TOLERANCE, difference
    assert abs(beside - plain).max() > 100 * TOLERANCE, "the adapter does nothing"
    print(f"mmgpt's logits with the adapter are those of PEFT's merged model within {difference:.1e}")


if __name__ == "__main__":
    {"make": make, "load": load, "compare": compare}[sys.argv[1]](*sys.argv[2:])
