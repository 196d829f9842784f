"""The public pieces: which files they are, and our names for their tensors.

Ours are the names of the original's checkpoint (MODEL.md): vision_encoder.visual.*, perceiver.*,
lang_encoder.*, with decoder_layer. and gated_cross_attn_layer. inside of a layer.  Each open_*
function gives a Piece.  What a piece may hold beside what is used is listed here by pattern; any
other tensor stops the conversion, since ignoring it could give another model.
"""

import glob
import json
import os
import re

from safetensors_file import open_safetensors
from tensors import ConvertError, StackedTensor, TransposedTensor
from torch_file import open_torch

# Held by public files and not needed: buffers that are computed, CLIP's text side.
LLAMA_EXTRAS = r"\.rotary_emb\.inv_freq$"
CLIP_EXTRAS = (r"^(transformer|token_embedding|ln_final|text|text_model)\."
               r"|^(positional_embedding|text_projection(\.weight)?|logit_scale|attn_mask)$"
               r"|^(input_resolution|context_length|vocab_size)$"
               r"|^vision_model\.embeddings\.position_ids$")
FLAMINGO_EXTRAS = r"\.rotary_emb\.inv_freq$|\.position_ids$|^vision_encoder\.(?!visual\.)"

LANGUAGE, VISUAL = "lang_encoder.", "vision_encoder.visual."
LAYER = re.compile(r"^lang_encoder\.(?:model\.layers|old_decoder_blocks)\.(\d+)\.(.+)$")
GATED = re.compile(r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.(.+)$")


class Piece:
    """One public piece: our name -> tensor, what was not used, and what else its files say."""

    def __init__(self, what):
        self.what = what
        self.tensors = {}
        self.unused = []            # names in the files
        self.unknown = []           # the same, not expected there
        self.settings = {}          # of a config.json beside the tensors
        self.tree = None            # all of a .pt file

    def add(self, name, tensor):
        """A tensor under our name; a second name of the same numbers changes nothing."""
        there = self.tensors.get(name)
        if there is not None and there.place() != tensor.place():
            raise ConvertError(f'"{tensor.file}" has "{name}" twice: as "{there.name}" and as "{tensor.name}"')
        self.tensors.setdefault(name, tensor)

    def sort(self, found, rename, extras):
        """Give names of ours to what was found; rename gives None for what has no place."""
        for stored, tensor in found.items():
            name = rename(stored)
            if re.search(extras, stored.removeprefix("module.")):
                self.unused.append(stored)
            elif name is not None:
                self.add(name, tensor)
            else:
                self.unknown.append(tensor)


def open_file(file):
    """Tensors of a file of either kind, and what else it holds."""
    if not os.path.isfile(file):
        raise ConvertError(f'there is no file "{file}"')
    if os.path.getsize(file) < 1000:
        with open(file, "rb") as stream:
            if stream.read(40).startswith(b"version https://git-lfs"):
                raise ConvertError(f'"{file}" is a pointer of Git LFS; fetch the file itself with git lfs pull')
    if file.endswith(".safetensors"):
        return open_safetensors(file), None
    return open_torch(file)


def read_json(file):
    try:
        with open(file, encoding="utf-8") as stream:
            value = json.load(stream)
    except OSError as error:
        raise ConvertError(f'could not read "{file}": {error.strerror}') from None
    except ValueError as error:
        raise ConvertError(f'"{file}" is not valid JSON: {error}') from None
    if not isinstance(value, dict):
        raise ConvertError(f'"{file}" is not a JSON object')
    return value


def weight_files(directory):
    """The files with the weights of a Hugging Face directory."""
    for single, shards in (("model.safetensors", "model-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*.bin")):
        index = os.path.join(directory, single + ".index.json")
        if os.path.isfile(index):
            named = sorted(set(read_json(index).get("weight_map", {}).values()))
            missing = [name for name in named if not os.path.isfile(os.path.join(directory, name))]
            if not missing and named:
                return [os.path.join(directory, name) for name in named]
            if missing and not glob.glob(os.path.join(directory, "pytorch_model*.bin")):
                raise ConvertError(f'"{directory}" lacks "{missing[0]}", which "{os.path.basename(index)}" names')
        if os.path.isfile(os.path.join(directory, single)):
            return [os.path.join(directory, single)]
        found = sorted(glob.glob(os.path.join(directory, shards)))
        if found:
            return found
    raise ConvertError(f'"{directory}" has no model*.safetensors and no pytorch_model*.bin')


def open_directory(directory):
    """The tensors of all its files, and its config.json."""
    found = {}
    for file in weight_files(directory):
        for name, tensor in open_file(file)[0].items():
            if name in found:
                raise ConvertError(f'tensor "{name}" is in "{found[name].file}" and in "{file}"')
            found[name] = tensor
    return found, read_json(os.path.join(directory, "config.json"))


def open_llama(directory):
    """LLaMA as Hugging Face has it."""
    piece = Piece("LLaMA")
    found, piece.settings = open_directory(directory)

    def rename(name):
        known = re.match(r"(model\.(layers\.\d+|embed_tokens|norm)|lm_head)\.", name)
        return language_name(LANGUAGE + name) if known else None

    piece.sort(found, rename, LLAMA_EXTRAS)
    return piece


def language_name(name):
    """A name of the language model: both names of a gated block become one, layers get decoder_layer."""
    gated = GATED.match(name)
    if gated:
        return f"{LANGUAGE}model.layers.{gated[1]}.gated_cross_attn_layer.{gated[2]}"
    layer = LAYER.match(name)
    if not layer or layer[2].startswith("gated_cross_attn_layer."):
        return name
    return f"{LANGUAGE}model.layers.{layer[1]}.decoder_layer.{layer[2].removeprefix('decoder_layer.')}"


def trained_name(name):
    """A name of the original's and OpenFlamingo's checkpoints, without what wraps their models."""
    name = name.removeprefix("module.")
    if name.startswith("lang_encoder.base_model.model."):
        name = LANGUAGE + name.removeprefix("lang_encoder.base_model.model.")
    return language_name(name.replace(".base_layer.", "."))


def open_trained(file, what):
    """Tensors of OpenFlamingo's checkpoint.pt or of the original's fine-tuning."""
    piece = Piece(what)
    found, piece.tree = open_file(file)

    def rename(stored):
        name = trained_name(stored)
        return name if name.startswith(("perceiver.", LANGUAGE, VISUAL)) else None

    piece.sort(found, rename, FLAMINGO_EXTRAS)
    if not piece.tensors:
        raise ConvertError(f'"{file}" holds no tensor of {what}; it begins with "{next(iter(found), "nothing")}"')
    return piece


# Hugging Face's name -> the name under vision_encoder.visual.
HF_CLIP = [
    (r"^vision_model\.embeddings\.class_embedding$", "class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.weight$", "conv1.weight"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.(weight|bias)$", r"ln_pre.\1"),
    (r"^vision_model\.post_layernorm\.(weight|bias)$", r"ln_post.\1"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"transformer.resblocks.\1.attn.\2_proj."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^visual_projection\.weight$", "proj"),
]


def clip_name(name):
    """Our name of a tensor of CLIP; None if it has none."""
    if name.startswith("visual."):
        return VISUAL + name.removeprefix("visual.")
    for pattern, ours in HF_CLIP:
        if re.search(pattern, name):
            return VISUAL + re.sub(pattern, ours, name)
    return None


def check_alike(tensors):
    """Tensors that are put one above the other have the same shape but for their rows."""
    for tensor in tensors:
        if not tensor.shape or tensor.shape[1:] != tensors[0].shape[1:]:
            raise ConvertError(f'tensor "{tensor.name}" of "{tensor.file}" has shape {list(tensor.shape)}, which does '
                               f'not fit {list(tensors[0].shape)} of "{tensors[0].name}"')


def stack_attention(piece):
    """Hugging Face keeps q, k and v apart, and its projection the other way round."""
    for name in [name for name in piece.tensors if ".attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        missing = [part for part in parts if part not in piece.tensors]
        if missing:
            raise ConvertError(f'tensor "{missing[0]}" is missing, the company of "{piece.tensors[name].name}"')
        tensors = [piece.tensors.pop(part) for part in parts]
        check_alike(tensors)
        ours = name.replace(".q_proj.", ".in_proj_")
        piece.tensors[ours] = StackedTensor([(tensor, tensor.shape[0]) for tensor in tensors])
    projection = piece.tensors.get(VISUAL + "proj")
    if projection is not None and projection.name == "visual_projection.weight":
        piece.tensors[VISUAL + "proj"] = TransposedTensor(projection)


def open_clip(path):
    """CLIP: OpenAI's archive or state dict, open_clip's file, or Hugging Face's directory or file."""
    piece = Piece("CLIP")
    if os.path.isdir(path):
        found, piece.settings = open_directory(path)
    else:
        found, piece.tree = open_file(path)
    piece.sort(found, clip_name, CLIP_EXTRAS)
    if not piece.tensors:
        raise ConvertError(f'"{path}" holds no vision transformer of CLIP: no tensor begins with "visual." or '
                           '"vision_model."')
    stack_attention(piece)
    return piece
