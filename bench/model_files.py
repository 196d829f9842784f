"""Model directories with random weights, as mmgpt reads them; used by the scripts beside this one."""
import json
import os
import shutil

# what every configuration here has in common
COMMON = {"add_bos": True, "add_eos": False, "image_mean": [0.48145466, 0.4578275, 0.40821073],
          "image_std": [0.26862954, 0.26130258, 0.27577711], "tie_word_embeddings": False}
LAYER_NORM = {"activation": "gelu (erf)", "layer_norm_eps": 1e-5}
# as small as the format allows, for a model whose other parts are measured
SMALLEST_VISION = {"image_size": 8, "patch_size": 8, "width": 8, "layers": 1, "heads": 1, "mlp_ratio": 4.0,
                   "output_dim": 8, "activation": "quick_gelu", "layer_norm_eps": 1e-5}
SMALLEST_RESAMPLER = {"depth": 1, "heads": 1, "dim_head": 8, "num_latents": 1, "ff_mult": 1} | LAYER_NORM
# further apart than any decoder has layers: no gated block at all
NO_GATED_BLOCKS = {"every_n_layers": 1000, "heads": 1, "dim_head": 8, "ff_mult": 1} | LAYER_NORM


def decoder(hidden, mlp, layers, heads, vocabulary, kv_heads=None):
    """The decoder's part of a configuration."""
    return {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads or heads, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "activation": "silu", "base_vocab_size": vocabulary - 3, "vocab_size": vocabulary}


def configuration(llama, vision=None, resampler=None, cross=None, **rest):
    """config.json of a model of these parts; parts that are not given are as small as can be."""
    base = llama["base_vocab_size"]
    return COMMON | {"vision": vision or SMALLEST_VISION, "perceiver": resampler or SMALLEST_RESAMPLER,
                     "cross_attention": cross or NO_GATED_BLOCKS, "llama": llama,
                     "special_ids": {"unk": 0, "bos": 1, "eos": 2, "endofchunk": base, "image": base + 1,
                                     "pad": base + 2, "generation_pad": 0},
                     "max_position_embeddings": 2048, "attend_previous_default": True} | rest


def vision_shapes(config):
    """Names and shapes of open_clip's vision transformer."""
    v = config["vision"]
    width, mlp, patch = v["width"], int(v["width"] * v["mlp_ratio"]), v["patch_size"]
    shapes = {"class_embedding": (width,), "positional_embedding": (1 + (v["image_size"] // patch) ** 2, width),
              "proj": (width, v["output_dim"]), "conv1.weight": (width, 3, patch, patch)}
    norms = ["ln_pre", "ln_post"]
    for i in range(v["layers"]):
        block = f"transformer.resblocks.{i}."
        norms += [block + "ln_1", block + "ln_2"]
        for name, outputs, inputs in (("attn.in_proj_", 3 * width, width), ("attn.out_proj.", width, width),
                                      ("mlp.c_fc.", mlp, width), ("mlp.c_proj.", width, mlp)):
            shapes[block + name + "weight"] = (outputs, inputs)
            shapes[block + name + "bias"] = (outputs,)
    for norm in norms:
        shapes[norm + ".weight"] = shapes[norm + ".bias"] = (width,)
    return {"vision_encoder.visual." + name: shape for name, shape in shapes.items()}


def attention_shapes(prefix, width, media, inner, norms):
    """An attention of the resampler or of a gated block."""
    shapes = {f"{prefix}{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    return shapes | {prefix + "to_q.weight": (inner, width), prefix + "to_kv.weight": (2 * inner, media),
                     prefix + "to_out.weight": (width, inner)}


def feed_forward_shapes(prefix, width, factor):
    """A feed-forward of the resampler or of a gated block."""
    return {prefix + "0.weight": (width,), prefix + "0.bias": (width,), prefix + "1.weight": (factor * width, width),
            prefix + "3.weight": (width, factor * width)}


def resampler_shapes(config):
    """Names and shapes of the perceiver resampler."""
    width, p = config["vision"]["width"], config["perceiver"]
    shapes = {"perceiver.latents": (p["num_latents"], width), "perceiver.norm.weight": (width,),
              "perceiver.norm.bias": (width,)}
    for i in range(p["depth"]):
        layer = f"perceiver.layers.{i}."
        shapes |= attention_shapes(layer + "0.", width, width, p["heads"] * p["dim_head"], ("norm_media", "norm_latents"))
        shapes |= feed_forward_shapes(layer + "1.", width, p["ff_mult"])
    return shapes


def decoder_shapes(config):
    """Names and shapes of LLaMA with its gated blocks."""
    llama, cross = config["llama"], config["cross_attention"]
    hidden, mlp = llama["hidden_size"], llama["intermediate_size"]
    kv = hidden // llama["num_attention_heads"] * llama["num_key_value_heads"]
    model = "lang_encoder.model."
    shapes = {model + "embed_tokens.weight": (llama["vocab_size"], hidden), model + "norm.weight": (hidden,),
              "lang_encoder.lm_head.weight": (llama["vocab_size"], hidden)}
    for i in range(llama["num_hidden_layers"]):
        layer = f"{model}layers.{i}.decoder_layer."
        for name, shape in (("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (kv, hidden)),
                            ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, hidden)),
                            ("mlp.gate_proj", (mlp, hidden)), ("mlp.up_proj", (mlp, hidden)),
                            ("mlp.down_proj", (hidden, mlp)), ("input_layernorm", (hidden,)),
                            ("post_attention_layernorm", (hidden,))):
            shapes[f"{layer}{name}.weight"] = shape
        if (i + 1) % cross["every_n_layers"] == 0:
            gated = f"{model}layers.{i}.gated_cross_attn_layer."
            shapes[gated + "attn_gate"] = shapes[gated + "ff_gate"] = (1,)
            shapes |= attention_shapes(gated + "attn.", hidden, config["vision"]["width"],
                                       cross["heads"] * cross["dim_head"], ("norm",))
            shapes |= feed_forward_shapes(gated + "ff.", hidden, cross["ff_mult"])
    return shapes


def draw(torch, config, seed=1):
    """Tensors of all parts, bf16: norms about one, matrices with a deviation that keeps activations in range."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in (vision_shapes(config) | resampler_shapes(config) | decoder_shapes(config)).items():
        noise = torch.randn(*shape, generator=generator)
        fan_in = shape[-1] if "conv1" not in name else shape[1] * shape[2] * shape[3]
        if name.endswith(".weight") and len(shape) == 1:
            noise = 1 + 0.1 * noise
        elif "embed" in name or name.endswith("latents"):
            noise = noise * 0.02 if "embed_tokens" in name else noise * fan_in ** -0.5
        elif len(shape) > 1:
            noise *= fan_in ** -0.5
        else:
            noise *= 0.1
        tensors[name] = noise.bfloat16()
    return tensors


def write_safetensors(torch, path, tensors):
    """The tensors in their own types: f32 and bf16."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype],
                        "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def read_safetensors(torch, path):
    """(name, tensor) one by one, read and not mapped, so that no page of the file counts as memory."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            tensor = torch.empty(entry["shape"], dtype={"F32": torch.float32, "BF16": torch.bfloat16}[entry["dtype"]])
            file.seek(8 + size + entry["data_offsets"][0])
            file.readinto(tensor.view(torch.uint8).numpy())
            yield name, tensor


def write_model(torch, directory, config, tensors):
    """Write a model directory: config.json and model.safetensors."""
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)
    write_safetensors(torch, os.path.join(directory, "model.safetensors"), tensors)


def write_decoder_1024(torch, directory, tokenizer):
    """A model that answers questions about pictures of 224, whose decoder has 16 layers of 1024."""
    config = configuration(
        decoder(1024, 2816, 16, 16, 32003),
        vision={"image_size": 224, "patch_size": 16, "width": 384, "layers": 12, "heads": 6, "mlp_ratio": 4.0,
                "output_dim": 384, "activation": "quick_gelu", "layer_norm_eps": 1e-5},
        resampler=LAYER_NORM | {"depth": 2, "heads": 8, "dim_head": 64, "num_latents": 64, "ff_mult": 4},
        cross=LAYER_NORM | {"every_n_layers": 4, "heads": 8, "dim_head": 64, "ff_mult": 4})
    write_model(torch, directory, config, draw(torch, config))
    shutil.copyfile(tokenizer, os.path.join(directory, "tokenizer.model"))
