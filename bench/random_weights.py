"""Decoders of random weights, written in the format they are measured in: as mmgpt-engine reads them and as GGUF.

Codes and scales are drawn, not computed from numbers, so a model of any size is written as fast as the disk takes it.
"""
import json
import os
import struct

import numpy
import model_files

PIECE = 1 << 22                 # numbers drawn at a time
ALIGNMENT = 32                  # of GGUF's tensors, bytes
# GGUF's number of a type, numbers in a block, bytes of a block
GGUF_TYPES = {"f32": (0, 1, 4), "q4_0": (2, 32, 18), "q8_0": (8, 32, 34), "q6_K": (14, 256, 210), "bf16": (30, 1, 2)}
# the types that llama-quantize gives the layers and the output matrix
PEER_TYPES = {"q4": ("q4_0", "q6_K"), "q8": ("q8_0", "q8_0"), "bf16": ("bf16", "bf16")}
# of codes drawn evenly, the deviation
DEVIATION_4, DEVIATION_6, DEVIATION_8 = 4.61, 18.5, 73.5


def to_bf16(values):
    """The bits of values, rounded toward zero."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def uniform(generator, count, deviation):
    """Numbers about zero, evenly spread, f32."""
    return (generator.random(count, dtype="f4") - numpy.float32(0.5)) * numpy.float32(12 ** 0.5 * deviation)


def scales(generator, count, middle):
    """Scales within a fifth of the middle one, f32."""
    return (0.8 + 0.4 * generator.random(count, dtype="f4")) * numpy.float32(middle)


def codes_8(generator, count):
    """Codes of 8 bits, -127 .. 127."""
    return numpy.maximum(numpy.frombuffer(generator.bytes(count), "i1"), -127)


def pieces(count):
    """Sizes of pieces that add up to count."""
    return [min(PIECE, count - at) for at in range(0, count, PIECE)]


# ---- mmgpt's files: codes row by row, then scales; see MODEL.md, section 10 ----

def stored_parts(name, shape, weight_format):
    """(name, type, shape) of the tensors in which a format keeps a tensor."""
    quantised = len(shape) == 2 and ("decoder_layer" in name or "lm_head" in name)
    if weight_format == "bf16" or not quantised:
        return [(name, "BF16", shape)]
    rows, columns = shape
    codes = ("U8", (rows, columns // 2)) if weight_format == "q4" and "lm_head" not in name else ("I8", shape)
    return [(name, *codes), (name + "_scale", "BF16", (rows, columns // 32))]


def write_stored(file, generator, name, kind, shape, fan_in, coded):
    """One tensor of mmgpt's file."""
    for count in pieces(int(numpy.prod(shape))):
        if kind == "U8":
            file.write(generator.bytes(count))
        elif kind == "I8":
            file.write(codes_8(generator, count).tobytes())
        elif name.endswith("_scale"):
            file.write(to_bf16(scales(generator, count, fan_in ** -0.5 / coded)).tobytes())
        elif len(shape) == 1 and name.endswith(".weight"):
            file.write(to_bf16(1 + uniform(generator, count, 0.1)).tobytes())
        else:
            file.write(to_bf16(uniform(generator, count, fan_in ** -0.5)).tobytes())


def write_engine_model(directory, config, weight_format):
    """A model directory in q8 or q4."""
    shapes = model_files.vision_shapes(config) | model_files.resampler_shapes(config) | model_files.decoder_shapes(config)
    parts = [(part, shape[-1] if len(shape) > 1 else 1, DEVIATION_4 if parts[0][1] == "U8" else DEVIATION_8)
             for name, shape in shapes.items() for parts in [stored_parts(name, shape, weight_format)] for part in parts]
    header, offset = {"__metadata__": {"format": "mmgpt", "weights": weight_format}}, 0
    for (name, kind, shape), _, _ in parts:
        size = int(numpy.prod(shape)) * (2 if kind == "BF16" else 1)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = numpy.random.default_rng(1)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)
    with open(os.path.join(directory, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, kind, shape), fan_in, coded in parts:
            write_stored(file, generator, name, kind, shape, fan_in, coded)


# ---- GGUF ----

def q4_0(generator, blocks, deviation):
    """Blocks of 32: a scale f16 and 32 halves of bytes."""
    block = numpy.empty(blocks, [("d", "<f2"), ("codes", "u1", 16)])
    block["d"] = scales(generator, blocks, deviation / DEVIATION_4)
    block["codes"] = numpy.frombuffer(generator.bytes(16 * blocks), "u1").reshape(blocks, 16)
    return block


def q8_0(generator, blocks, deviation):
    """Blocks of 32: a scale f16 and 32 bytes."""
    block = numpy.empty(blocks, [("d", "<f2"), ("codes", "i1", 32)])
    block["d"] = scales(generator, blocks, deviation / DEVIATION_8)
    block["codes"] = codes_8(generator, 32 * blocks).reshape(blocks, 32)
    return block


def q6_k(generator, blocks, deviation):
    """Blocks of 256: the low 4 and the high 2 bits of the codes, 16 scales of 8 bits, one of f16 over all."""
    block = numpy.empty(blocks, [("codes", "u1", 192), ("scales", "i1", 16), ("d", "<f2")])
    block["codes"] = numpy.frombuffer(generator.bytes(192 * blocks), "u1").reshape(blocks, 192)
    block["scales"] = generator.integers(48, 80, (blocks, 16), dtype="i1")
    block["d"] = scales(generator, blocks, deviation / (64 * DEVIATION_6))
    return block


BLOCKS = {"q4_0": q4_0, "q8_0": q8_0, "q6_K": q6_k,
          "bf16": lambda generator, count, deviation: to_bf16(uniform(generator, count, deviation)),
          "f32": lambda generator, count, _: 1 + uniform(generator, count, 0.1)}


def gguf_tensors(llama, weight_format):
    """(name, rows, columns, type) of llama.cpp's tensors; norms have no rows."""
    hidden, mlp, vocabulary = llama["hidden_size"], llama["intermediate_size"], llama["vocab_size"]
    kv = hidden // llama["num_attention_heads"] * llama["num_key_value_heads"]
    layers, output = PEER_TYPES[weight_format]
    tensors = [("token_embd", vocabulary, hidden, layers), ("output_norm", 0, hidden, "f32"),
               ("output", vocabulary, hidden, output)]
    for i in range(llama["num_hidden_layers"]):
        tensors += [(f"blk.{i}.{name}", rows, columns, layers if rows else "f32") for name, rows, columns in (
            ("attn_norm", 0, hidden), ("attn_q", hidden, hidden), ("attn_k", kv, hidden), ("attn_v", kv, hidden),
            ("attn_output", hidden, hidden), ("ffn_norm", 0, hidden), ("ffn_gate", mlp, hidden),
            ("ffn_up", mlp, hidden), ("ffn_down", hidden, mlp))]
    return tensors


def gguf_text(text):
    """A string: its length, its bytes."""
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_metadata(config):
    """The keys without which llama.cpp loads no model; no tokenizer, only a number of tokens."""
    llama = config["llama"]
    head = llama["hidden_size"] // llama["num_attention_heads"]
    values = {"general.architecture": "llama", "tokenizer.ggml.model": "no_vocab",
              "llama.vocab_size": llama["vocab_size"], "llama.context_length": config["max_position_embeddings"],
              "llama.embedding_length": llama["hidden_size"], "llama.block_count": llama["num_hidden_layers"],
              "llama.feed_forward_length": llama["intermediate_size"], "llama.rope.dimension_count": head,
              "llama.attention.head_count": llama["num_attention_heads"],
              "llama.attention.head_count_kv": llama["num_key_value_heads"],
              "llama.attention.layer_norm_rms_epsilon": llama["rms_norm_eps"],
              "llama.rope.freq_base": llama["rope_theta"], "general.quantization_version": 2}
    texts = []
    for key, value in values.items():
        kind, packed = ((8, gguf_text(value)) if isinstance(value, str) else
                        (4, struct.pack("<I", value)) if isinstance(value, int) else (6, struct.pack("<f", value)))
        texts.append(gguf_text(key) + struct.pack("<I", kind) + packed)
    return texts


def write_gguf(path, config, weight_format):
    """The same decoder for llama.cpp."""
    tensors, metadata = gguf_tensors(config["llama"], weight_format), gguf_metadata(config)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata)
    offset = 0
    for name, rows, columns, kind in tensors:
        number, block, size = GGUF_TYPES[kind]
        shape = (columns, rows) if rows else (columns,)
        header += gguf_text(name + ".weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)
        offset += -(-max(rows, 1) * columns // block * size // ALIGNMENT) * ALIGNMENT
    generator = numpy.random.default_rng(1)
    with open(path, "wb") as file:
        file.write(header)
        for _, rows, columns, kind in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            for count in pieces(max(rows, 1) * columns):
                file.write(BLOCKS[kind](generator, count // GGUF_TYPES[kind][1], columns ** -0.5).tobytes())
        file.write(bytes(-file.tell() % ALIGNMENT))


# ---- what a token reads ----

def weight_bytes(llama, weight_format):
    """Bytes of weights that the engine reads for one token: all matrices but the table of tokens, norms left out."""
    matrices = [(name, rows * columns) for name, rows, columns, _ in gguf_tensors(llama, "bf16")
                if rows and name != "token_embd"]
    eight = {"q4": 34 / 32, "q8": 34 / 32, "bf16": 2}[weight_format]
    layers = {"q4": 18 / 32, "q8": 34 / 32, "bf16": 2}[weight_format]
    return sum(numbers * (eight if name == "output" else layers) for name, numbers in matrices)
