"""Random models of the benchmark, as mmgpt reads them; used by bench/vision.

The vision encoder has the shape of CLIP ViT-L/14. What follows it in a MultiModal-GPT is as small as
the format allows, so that encoding a picture costs what the vision encoder costs.
"""
import json
import os

IMAGE, PATCH, WIDTH, LAYERS, HEADS, MLP, OUTPUT = 224, 14, 1024, 24, 16, 4096, 768
HIDDEN, DECODER_MLP, VOCABULARY, BASE = 16, 16, 16, 13

CONFIG = {
    "vision": {"image_size": IMAGE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS, "heads": HEADS,
               "mlp_ratio": MLP / WIDTH, "output_dim": OUTPUT, "activation": "quick_gelu", "layer_norm_eps": 1e-5},
    "perceiver": {"depth": 1, "heads": 1, "dim_head": 8, "num_latents": 1, "ff_mult": 1, "activation": "gelu (erf)",
                  "layer_norm_eps": 1e-5},
    "cross_attention": {"every_n_layers": 1, "heads": 1, "dim_head": 8, "ff_mult": 1, "activation": "gelu (erf)",
                        "layer_norm_eps": 1e-5},
    "llama": {"hidden_size": HIDDEN, "intermediate_size": DECODER_MLP, "num_hidden_layers": 1,
              "num_attention_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "activation": "silu",
              "base_vocab_size": BASE, "vocab_size": VOCABULARY},
    "special_ids": {"unk": 0, "bos": 1, "eos": 2, "endofchunk": 13, "image": 14, "pad": 15, "generation_pad": 0},
    "add_bos": True, "add_eos": False,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_position_embeddings": 64, "tie_word_embeddings": False, "attend_previous_default": True,
}


def vision_state(torch):
    """The tensors of open_clip's ViT-L/14, f32, drawn as open_clip initialises them."""
    generator = torch.Generator().manual_seed(1)

    def draw(deviation, *shape):
        return torch.randn(*shape, generator=generator) * deviation

    state = {"class_embedding": draw(WIDTH ** -0.5, WIDTH),
             "positional_embedding": draw(WIDTH ** -0.5, 1 + (IMAGE // PATCH) ** 2, WIDTH),
             "proj": draw(WIDTH ** -0.5, WIDTH, OUTPUT),
             "conv1.weight": draw((3 * PATCH * PATCH) ** -0.5, WIDTH, 3, PATCH, PATCH)}
    norms = ["ln_pre", "ln_post"]
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}."
        norms += [block + "ln_1", block + "ln_2"]
        for name, outputs, inputs in (("attn.in_proj_", 3 * WIDTH, WIDTH), ("attn.out_proj.", WIDTH, WIDTH),
                                      ("mlp.c_fc.", MLP, WIDTH), ("mlp.c_proj.", WIDTH, MLP)):
            state[block + name + "weight"] = draw(inputs ** -0.5, outputs, inputs)
            state[block + name + "bias"] = draw(0.02, outputs)
    for norm in norms:
        state[norm + ".weight"] = 1 + draw(0.1, WIDTH)
        state[norm + ".bias"] = draw(0.1, WIDTH)
    return state


def other_state(torch):
    """Resampler, gated block and decoder: as small as can be."""
    shapes = {"perceiver.latents": (1, WIDTH), "perceiver.norm.weight": (WIDTH,), "perceiver.norm.bias": (WIDTH,)}
    layer = "lang_encoder.model.layers.0."
    gated = layer + "gated_cross_attn_layer."
    for prefix, width, norms in (("perceiver.layers.0.0.", WIDTH, ("norm_media", "norm_latents")),
                                 (gated + "attn.", HIDDEN, ("norm",))):
        for norm in norms:
            shapes[prefix + norm + ".weight"] = shapes[prefix + norm + ".bias"] = (width,)
        shapes[prefix + "to_q.weight"] = (8, width)
        shapes[prefix + "to_kv.weight"] = (16, WIDTH)
        shapes[prefix + "to_out.weight"] = (width, 8)
    for prefix, width in (("perceiver.layers.0.1.", WIDTH), (gated + "ff.", HIDDEN)):
        shapes[prefix + "0.weight"] = shapes[prefix + "0.bias"] = (width,)
        shapes[prefix + "1.weight"] = shapes[prefix + "3.weight"] = (width, width)
    shapes[gated + "attn_gate"] = shapes[gated + "ff_gate"] = (1,)
    for name in ("q", "k", "v", "o"):
        shapes[f"{layer}decoder_layer.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
    for name in ("gate", "up", "down"):
        shapes[f"{layer}decoder_layer.mlp.{name}_proj.weight"] = (DECODER_MLP, HIDDEN)
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{layer}decoder_layer.{name}.weight"] = (HIDDEN,)
    shapes["lang_encoder.model.embed_tokens.weight"] = shapes["lang_encoder.lm_head.weight"] = (VOCABULARY, HIDDEN)
    shapes["lang_encoder.model.norm.weight"] = (HIDDEN,)
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(*shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def write_safetensors(path, tensors):
    """The tensors in their own types: f32 and bf16."""
    import torch
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
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def write_model(torch, directory, vision):
    """A model directory whose weights are the given vision encoder's, in bf16."""
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(CONFIG, file)
    tensors = {"vision_encoder.visual." + name: tensor for name, tensor in vision.items()}
    tensors.update(other_state(torch))
    write_safetensors(os.path.join(directory, "model.safetensors"),
                      {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
