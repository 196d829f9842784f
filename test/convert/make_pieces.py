"""Small pieces in the layouts of the public ones, from the weights of test/golden/model-a.

PyTorch writes them, as it wrote the public files: shards of LLaMA, OpenFlamingo's checkpoint, CLIP as
TorchScript, as a state dict and as Hugging Face's, the LoRA with a configuration of mmengine in it.
"""

import json
import os
import re
import shutil
import struct
import sys
import types

import numpy
import torch

GOLDEN = "test/golden/model-a"
PIECES = 600                    # of its tokenizer
EMBEDDING, HEAD = "lang_encoder.model.embed_tokens.weight", "lang_encoder.lm_head.weight"


def load_safetensors(path):
    """name -> f32 or bf16 tensor, or ids."""
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I32": torch.int32}
    with open(path, "rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        data = bytearray(stream.read())
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            found[name] = torch.frombuffer(data[first:last], dtype=kinds[entry["dtype"]]).view(entry["shape"])
    return found


def save_safetensors(path, tensors):
    header, parts, offset = {}, [], 0
    for name, tensor in tensors.items():
        data = tensor.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def llama_tensors(golden, rows):
    """The decoder under Hugging Face's names; rows: of embeddings and head."""
    found = {}
    for name, tensor in golden.items():
        if name.startswith("lang_encoder.") and "gated_cross_attn_layer" not in name:
            plain = name.removeprefix("lang_encoder.").replace("decoder_layer.", "")
            found[plain] = tensor[:rows].clone() if name in (EMBEDDING, HEAD) else tensor
    return found


def llama_config(rows):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 96,
            "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 6, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048, "vocab_size": rows, "tie_word_embeddings": False}


def make_llama(directory, tensors, rows, shards=2):
    """As transformers saves it: shards of .bin with an index, or with shards = 0 one safetensors file."""
    os.makedirs(directory)
    shutil.copy(f"{GOLDEN}/tokenizer.model", directory)
    with open(f"{directory}/config.json", "w") as stream:
        json.dump(llama_config(rows), stream)
    if shards == 0:
        save_safetensors(f"{directory}/model.safetensors", tensors)
        return
    index = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(tensors.items())[shard::shards])
        torch.save(part, f"{directory}/{file}")
        index.update({name: file for name in part})
    with open(f"{directory}/pytorch_model.bin.index.json", "w") as stream:
        json.dump({"metadata": {}, "weight_map": index}, stream)


def flamingo_tensors(golden):
    """What OpenFlamingo trains: resampler, gated blocks under both their names, embeddings."""
    found = {EMBEDDING: golden[EMBEDDING]}
    found["vision_encoder.vision_model.embeddings.position_ids"] = torch.arange(17)
    for name, tensor in golden.items():
        if name.startswith("perceiver."):
            found[name] = tensor
        match = re.match(r"lang_encoder\.model\.layers\.(\d+)\.gated_cross_attn_layer\.(.+)", name)
        if match:
            found[name] = tensor
            found[f"lang_encoder.gated_cross_attn_layers.{match[1]}.{match[2]}"] = tensor
    return found


def clip_tensors(golden):
    """CLIP under OpenAI's names, with something of its text side."""
    found = {name.removeprefix("vision_encoder."): tensor for name, tensor in golden.items() if "visual." in name}
    found.update({"logit_scale": torch.tensor(4.6), "positional_embedding": torch.zeros(77, 8),
                  "transformer.resblocks.0.ln_1.weight": torch.ones(8), "token_embedding.weight": torch.zeros(10, 8)})
    return found


def module_tree(tensors):
    """A module whose parameters have these dotted names."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(tensor.clone()))
    return root


class Traced(torch.nn.Module):
    """CLIP as a traced module: its parameters, and a forward that uses none."""

    def __init__(self, tensors):
        super().__init__()
        tree = module_tree(tensors)
        for name, child in tree.named_children():
            self.add_module(name, child)
        for name, parameter in list(tree.named_parameters(recurse=False)):
            self.register_parameter(name, parameter)
        self.register_buffer("input_resolution", torch.tensor(56))

    def forward(self, x):
        return x + 1


def save_torchscript(tensors, path):
    torch.jit.trace(Traced(tensors), torch.zeros(1)).save(path)


def huggingface_clip(golden):
    """The vision tower under Hugging Face's names."""
    renamed = [("transformer.resblocks.", "vision_model.encoder.layers."), (".ln_1.", ".layer_norm1."),
               (".ln_2.", ".layer_norm2."), (".attn.out_proj.", ".self_attn.out_proj."), ("c_fc.", "fc1."),
               ("c_proj.", "fc2."), ("conv1.", "vision_model.embeddings.patch_embedding."),
               ("ln_pre.", "vision_model.pre_layrnorm."), ("ln_post.", "vision_model.post_layernorm.")]
    whole = {"class_embedding": "vision_model.embeddings.class_embedding",
             "positional_embedding": "vision_model.embeddings.position_embedding.weight"}
    found = {"text_model.final_layer_norm.weight": torch.ones(8), "logit_scale": torch.ones(1)}
    for name, tensor in golden.items():
        if "visual." not in name:
            continue
        name = name.removeprefix("vision_encoder.visual.")
        if name == "proj":
            found["visual_projection.weight"] = tensor.T
            continue
        if ".attn.in_proj_" in name:
            layer, kind = re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)", name).groups()
            for letter, part in zip("qkv", tensor.chunk(3)):
                found[f"vision_model.encoder.layers.{layer}.self_attn.{letter}_proj.{kind}"] = part
            continue
        for old, new in renamed:
            name = name.replace(old, new)
        found[whole.get(name, name)] = tensor
    return found


def make_huggingface_clip(directory, tensors, **vision):
    os.makedirs(directory)
    save_safetensors(f"{directory}/model.safetensors", tensors)
    with open(f"{directory}/config.json", "w") as stream:
        json.dump({"model_type": "clip", "vision_config": {"num_attention_heads": 4, "hidden_act": "quick_gelu",
                                                           **vision}}, stream)


def mmengine_classes():
    """Stand-ins for the classes of mmengine that the original pickles its configuration with."""
    module = types.ModuleType("mmengine.config.config")
    parent, package = types.ModuleType("mmengine"), types.ModuleType("mmengine.config")

    class ConfigDict(dict):
        def __getstate__(self):     # as addict has it: the object is a part of itself
            return self

    class Config:
        def __init__(self, values):
            self.values = ConfigDict(tuning_config=ConfigDict(values))

        def __getstate__(self):
            return self.values, "configs/lora_config.py", "text"

        def __setstate__(self, state):
            raise AssertionError("code of the file has run")

    for made in (ConfigDict, Config):
        made.__module__, made.__qualname__ = module.__name__, made.__name__
        setattr(module, made.__name__, made)
    sys.modules.update({"mmengine": parent, "mmengine.config": package, module.__name__: module})
    return Config


def save_lora(path, tensors, prefix="module.", alpha=8, rank=4):
    """As the original's training saves it."""
    config = mmengine_classes()({"lora": True, "lora_r": rank, "lora_alpha": alpha, "unfrozen": []})
    torch.save({"epoch": 0, "model_state_dict": {prefix + name: tensor for name, tensor in tensors.items()},
                "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "tuning_config": config}, path)
    for name in [name for name in sys.modules if name.split(".")[0] == "mmengine"]:
        del sys.modules[name]


def golden_cases():
    """The forward cases: name, ids, images, media mode, positions and logits there."""
    with open(f"{GOLDEN}/cases.json") as stream:
        cases = json.load(stream)
    cases = cases["forward"] if isinstance(cases, dict) else cases
    values = load_safetensors(f"{GOLDEN}/forward.safetensors")
    return cases, {name: tensor.numpy().astype(numpy.float32) if tensor.is_floating_point() else tensor.numpy()
                   for name, tensor in values.items()}
