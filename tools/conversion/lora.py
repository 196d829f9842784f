"""The LoRA of the original's fine-tuning: an adapter in PEFT's format, or a part of the weights."""

import json
import os
import re

from layout import shape_of
from safetensors_file import write_safetensors
from tensors import ConvertError, MergedTensor
from torch_file import find_number

MATRIX = re.compile(r"^(lang_encoder\..+)\.lora_([AB])(?:\.default)?(?:\.weight)?$")
# Kinds of matrices that an adapter may change; the engine knows these.
TARGET = re.compile(r"\.((?:q|k|v|o|gate|up|down)_proj|to_q|to_kv|to_out|ff\.[13])$")


class Lora:
    """pairs: name of a matrix, without .weight -> (A, B); rank, alpha, targets."""

    def __init__(self, pairs, rank, alpha):
        self.pairs, self.rank, self.alpha = pairs, rank, alpha
        self.targets = sorted({TARGET.search(name)[1] for name in pairs})


def take_lora(piece, alpha):
    """Take LoRA's matrices out of a piece; what stays in it replaces tensors of the model.

    alpha: None, or what the user says instead of what the file does.
    """
    halves = {}
    for name in list(piece.tensors):
        match = MATRIX.match(name)
        if match:
            halves.setdefault(match[1], {})[match[2]] = piece.tensors.pop(name)
    pairs = {}
    for name, found in halves.items():
        present = next(iter(found.values()))
        if len(found) < 2:
            raise ConvertError(f'"{present.file}" holds "{present.name}" and not the other half, '
                               f"lora_{'B' if 'A' in found else 'A'}")
        if not TARGET.search(name):
            raise ConvertError(f'tensor "{present.name}" of "{present.file}" is LoRA on a matrix that cannot have it')
        pairs[name] = found["A"], found["B"]
    if not pairs:
        raise ConvertError(f"the file of {piece.what} holds no lora_A and lora_B")
    rank = check_rank(piece, pairs)
    if alpha is None:
        alpha = find_number(piece.tree, "lora_alpha")
    if alpha is None:
        raise ConvertError("the file of the LoRA does not say lora_alpha; give it with --lora-alpha "
                           "(the original's configs/lora_config.py has 16)")
    return Lora(pairs, rank, alpha)


def check_rank(piece, pairs):
    """The one rank of all matrices."""
    first = next(iter(pairs.values()))[0]
    rank = first.shape[0] if first.shape else 0
    stated = find_number(piece.tree, "lora_r")
    if stated is not None and stated != rank:
        raise ConvertError(f'"{first.name}" of "{first.file}" has rank {rank}, but the file says lora_r = {stated}')
    return rank


def check_shapes(lora, weights):
    """Does every pair fit its matrix?"""
    for name, (a, b) in lora.pairs.items():
        outputs, inputs = shape_of(weights, name + ".weight", 2)
        for tensor, shape in ((a, (lora.rank, inputs)), (b, (outputs, lora.rank))):
            if tensor.shape != shape:
                raise ConvertError(f'tensor "{tensor.name}" of "{tensor.file}" has shape {list(tensor.shape)}, '
                                   f"not {list(shape)}")


def merge(lora, weights):
    """Put the LoRA into the matrices."""
    for name, (a, b) in lora.pairs.items():
        weights[name + ".weight"] = MergedTensor(weights[name + ".weight"], a, b, lora.alpha / lora.rank)


def write_adapter(lora, directory, progress):
    """adapter_config.json and adapter_model.safetensors, as PEFT saves them."""
    tensors = {}
    for name, (a, b) in lora.pairs.items():
        path = "base_model.model." + name.removeprefix("lang_encoder.")
        tensors[f"{path}.lora_A.weight"] = (a, "F32")
        tensors[f"{path}.lora_B.weight"] = (b, "F32")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
              "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
              "target_modules": lora.targets}
    write_safetensors(os.path.join(directory, "adapter_model.safetensors"), tensors, progress)
    with open(os.path.join(directory, "adapter_config.json"), "w", encoding="utf-8") as stream:
        json.dump(config, stream, indent=1)
        stream.write("\n")
