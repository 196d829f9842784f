"""What a model has to hold: config.json from LLaMA's settings and the tensors' shapes, and the list
of all tensors with the shapes that follow from it."""

import copy
import json
import math
import re

from pieces import VISUAL
from tensors import ConvertError

HEAD_SIZE = 64                  # of CLIP's towers and of OpenFlamingo's attention; not in any file
TEMPLATE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PROMPTS = {"caption_brief", "caption_detailed", "count", "filter", "classify", "classify_answer", "classify_multi",
           "yes_words", "no_words"}
GATED_LAYER = re.compile(r"^lang_encoder\.model\.layers\.(\d+)\.gated_cross_attn_layer\.attn_gate$")


def shape_of(weights, name, dimensions):
    """The shape of a tensor that has to be there."""
    tensor = weights.get(name)
    if tensor is None:
        raise ConvertError(f'tensor "{name}" is missing: no file holds it')
    if len(tensor.shape) != dimensions:
        raise ConvertError(f'tensor "{tensor.name}" of "{tensor.file}" has shape {list(tensor.shape)}; '
                           f"{dimensions} dimensions are expected")
    return tensor.shape


def count_of(weights, pattern):
    """How many layers there are: one more than the highest number."""
    numbers = {int(match[1]) for match in (re.match(pattern, name) for name in weights) if match}
    return max(numbers, default=-1) + 1


def vision_config(weights, settings):
    """The vision tower; settings: Hugging Face's config.json, or nothing."""
    width, _, patch, _ = shape_of(weights, VISUAL + "conv1.weight", 4)
    positions = shape_of(weights, VISUAL + "positional_embedding", 2)[0]
    across = math.isqrt(max(positions - 1, 0))
    if across == 0 or across * across != positions - 1:
        raise ConvertError(f'"{VISUAL}positional_embedding" has {positions} rows, which is no square and one')
    settings = settings.get("vision_config") or settings
    activation = settings.get("hidden_act", "quick_gelu")
    if activation != "quick_gelu":
        raise ConvertError(f'the config.json of CLIP has hidden_act "{activation}"; only quick_gelu is computed, as '
                           "in OpenAI's models")
    projection = weights.get(VISUAL + "proj")
    return {"image_size": patch * across, "patch_size": patch, "width": width,
            "layers": count_of(weights, re.escape(VISUAL) + r"transformer\.resblocks\.(\d+)\."),
            "heads": settings.get("num_attention_heads", max(1, width // HEAD_SIZE)),
            "mlp_ratio": shape_of(weights, VISUAL + "transformer.resblocks.0.mlp.c_fc.weight", 2)[0] / width,
            "output_dim": projection.shape[-1] if projection is not None else width,
            "activation": "quick_gelu", "layer_norm_eps": settings.get("layer_norm_eps", 1e-5)}


def attention_config(weights, to_q, up):
    """What the resampler and the gated blocks have in common."""
    inner = shape_of(weights, to_q, 2)[0]
    mlp, width = shape_of(weights, up, 2)
    return {"heads": max(1, inner // HEAD_SIZE), "dim_head": HEAD_SIZE, "ff_mult": mlp // width,
            "activation": "gelu (erf)", "layer_norm_eps": 1e-5}


def perceiver_config(weights):
    layer = "perceiver.layers.0."
    return {"depth": count_of(weights, r"perceiver\.layers\.(\d+)\."),
            "num_latents": shape_of(weights, "perceiver.latents", 2)[0],
            **attention_config(weights, layer + "0.to_q.weight", layer + "1.1.weight")}


def cross_attention_config(weights, layers):
    gated = sorted(int(match[1]) for match in map(GATED_LAYER.match, weights) if match)
    if not gated:
        raise ConvertError("no file holds gated cross attention (attn_gate of a gated_cross_attn_layer)")
    every = gated[0] + 1
    if gated != [i for i in range(layers) if (i + 1) % every == 0]:
        raise ConvertError(f"gated cross attention stands at layers {gated} of {layers}, which is not every {every}th")
    layer = f"lang_encoder.model.layers.{gated[0]}.gated_cross_attn_layer."
    return {"every_n_layers": every, **attention_config(weights, layer + "attn.to_q.weight", layer + "ff.1.weight")}


def check_llama(settings):
    """Refuse what looks like LLaMA and computes something else."""
    rotary = settings.get("rope_parameters") or {}
    if rotary.get("rope_type", "default") != "default":
        raise ConvertError(f'the config.json of LLaMA has rope_type "{rotary["rope_type"]}"; only "default" is supported')
    for key, expected in (("model_type", "llama"), ("hidden_act", "silu"), ("rope_scaling", None),
                          ("attention_bias", False), ("mlp_bias", False), ("tie_word_embeddings", False)):
        if settings.get(key, expected) != expected:
            raise ConvertError(f'the config.json of LLaMA has {key} = {json.dumps(settings[key])}; only '
                               f"{json.dumps(expected)} is supported")


def llama_setting(settings, key, fallback=None):
    value = settings.get(key)
    value = fallback if value is None else value
    if not isinstance(value, (int, float)) or value <= 0:
        raise ConvertError(f'the config.json of LLaMA lacks "{key}", or it is not a positive number')
    return value


def llama_config(settings, pieces):
    """settings: LLaMA's config.json; pieces: those of tokenizer.model."""
    check_llama(settings)
    settings = {**settings, **(settings.get("rope_parameters") or {})}      # transformers 5 keeps rope_theta there
    heads = llama_setting(settings, "num_attention_heads")
    config = {"hidden_size": llama_setting(settings, "hidden_size"),
              "intermediate_size": llama_setting(settings, "intermediate_size"),
              "num_hidden_layers": llama_setting(settings, "num_hidden_layers"),
              "num_attention_heads": heads,
              "rms_norm_eps": llama_setting(settings, "rms_norm_eps", 1e-6),
              "rope_theta": llama_setting(settings, "rope_theta", 10000.0),
              "activation": "silu", "base_vocab_size": pieces, "vocab_size": pieces + 3}
    if llama_setting(settings, "num_key_value_heads", heads) != heads:
        config["num_key_value_heads"] = settings["num_key_value_heads"]
    return config


def make_config(weights, llama_settings, clip_settings, pieces):
    """config.json of the model."""
    llama = llama_config(llama_settings, pieces)
    return {"vision": vision_config(weights, clip_settings), "perceiver": perceiver_config(weights),
            "cross_attention": cross_attention_config(weights, llama["num_hidden_layers"]), "llama": llama,
            "special_ids": {"unk": 0, "bos": 1, "eos": 2, "endofchunk": pieces, "image": pieces + 1, "pad": pieces + 2,
                            "generation_pad": 0},
            "add_bos": True, "add_eos": False,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "max_position_embeddings": llama_setting(llama_settings, "max_position_embeddings", 2048),
            "tie_word_embeddings": False, "template": TEMPLATE, "separator": "\n\n### ", "user_prefix": "Instruction",
            "ai_prefix": "Response", "image_block": "Image:\n<image>", "response_split": "### Response:",
            "attend_previous_default": False, "history_eos": False}


def kind_of(value):
    """What a value of JSON is; whole numbers and others are the same."""
    return "number" if type(value) in (int, float) else type(value)


def change_config(config, changes):
    """A copy with the values of --set, (key, value) each; only keys that are there, or prompts."""
    config = copy.deepcopy(config)
    for key, value in changes:
        section, _, inner = key.rpartition(".")
        if section == "prompts" and inner in PROMPTS:
            config.setdefault("prompts", {})
        place = config.get(section) if section else config
        known = isinstance(place, dict) and (inner in place or section == "prompts" and inner in PROMPTS)
        if not known or isinstance(place.get(inner), dict):
            raise ConvertError(f'--set: "{key}" is not a key of config.json')
        if inner in place and kind_of(place[inner]) != kind_of(value):
            raise ConvertError(f"--set: {key} is {json.dumps(place[inner])} and cannot become {json.dumps(value)}")
        place[inner] = value
    return config


def norm(name, width):
    return {name + ".weight": (width,), name + ".bias": (width,)}


def attention_shapes(prefix, width, media, inner, mlp, ff):
    """Matrices of one attention and its feed-forward part; prefix and ff: names before the dot."""
    return {f"{prefix}.to_q.weight": (inner, width), f"{prefix}.to_kv.weight": (2 * inner, media),
            f"{prefix}.to_out.weight": (width, inner), **norm(f"{ff}.0", width),
            f"{ff}.1.weight": (mlp, width), f"{ff}.3.weight": (width, mlp)}


def vision_shapes(vision):
    width, patch = vision["width"], vision["patch_size"]
    mlp, across = int(width * vision["mlp_ratio"]), vision["image_size"] // patch
    shapes = {"conv1.weight": (width, 3, patch, patch), "class_embedding": (width,),
              "positional_embedding": (1 + across * across, width), **norm("ln_pre", width)}
    for i in range(vision["layers"]):
        block = f"transformer.resblocks.{i}."
        shapes.update({**norm(block + "ln_1", width), **norm(block + "ln_2", width),
                       block + "attn.in_proj_weight": (3 * width, width), block + "attn.in_proj_bias": (3 * width,),
                       block + "attn.out_proj.weight": (width, width), block + "attn.out_proj.bias": (width,),
                       block + "mlp.c_fc.weight": (mlp, width), block + "mlp.c_fc.bias": (mlp,),
                       block + "mlp.c_proj.weight": (width, mlp), block + "mlp.c_proj.bias": (width,)})
    return {VISUAL + name: shape for name, shape in shapes.items()}


def perceiver_shapes(perceiver, width):
    inner = perceiver["heads"] * perceiver["dim_head"]
    shapes = {"perceiver.latents": (perceiver["num_latents"], width), **norm("perceiver.norm", width)}
    for i in range(perceiver["depth"]):
        layer = f"perceiver.layers.{i}"
        shapes.update({**norm(layer + ".0.norm_media", width), **norm(layer + ".0.norm_latents", width),
                       **attention_shapes(layer + ".0", width, width, inner, perceiver["ff_mult"] * width, layer + ".1")})
    return shapes


def gated_shapes(layer, cross, hidden, width):
    block, inner = layer + "gated_cross_attn_layer", cross["heads"] * cross["dim_head"]
    return {f"{block}.attn_gate": (1,), f"{block}.ff_gate": (1,), **norm(f"{block}.attn.norm", hidden),
            **attention_shapes(f"{block}.attn", hidden, width, inner, cross["ff_mult"] * hidden, f"{block}.ff")}


def decoder_shapes(config):
    llama, cross = config["llama"], config["cross_attention"]
    hidden, mlp = llama["hidden_size"], llama["intermediate_size"]
    heads = llama["num_attention_heads"]
    keys = hidden // heads * llama.get("num_key_value_heads", heads)
    shapes = {"lang_encoder.model.embed_tokens.weight": (llama["vocab_size"], hidden),
              "lang_encoder.lm_head.weight": (llama["vocab_size"], hidden), "lang_encoder.model.norm.weight": (hidden,)}
    for i in range(llama["num_hidden_layers"]):
        layer = f"lang_encoder.model.layers.{i}."
        own = layer + "decoder_layer."
        shapes.update({own + "self_attn.q_proj.weight": (hidden, hidden), own + "self_attn.k_proj.weight": (keys, hidden),
                       own + "self_attn.v_proj.weight": (keys, hidden), own + "self_attn.o_proj.weight": (hidden, hidden),
                       own + "mlp.gate_proj.weight": (mlp, hidden), own + "mlp.up_proj.weight": (mlp, hidden),
                       own + "mlp.down_proj.weight": (hidden, mlp), own + "input_layernorm.weight": (hidden,),
                       own + "post_attention_layernorm.weight": (hidden,)})
        if (i + 1) % cross["every_n_layers"] == 0:
            shapes.update(gated_shapes(layer, cross, hidden, config["vision"]["width"]))
    return shapes


def model_shapes(config):
    """All tensors of a model: name -> shape."""
    width = config["vision"]["width"]
    return {**vision_shapes(config["vision"]), **perceiver_shapes(config["perceiver"], width), **decoder_shapes(config)}


# Copied where a piece holds them; nothing is computed with them.
def optional_shapes(config):
    width = config["vision"]["width"]
    return {VISUAL + "proj": (width, config["vision"]["output_dim"]), **norm(VISUAL + "ln_post", width)}
