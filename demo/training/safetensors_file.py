"""Write and read safetensors files: a JSON header, then the tensors' bytes."""

import json
import struct

import torch

TYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}


def save_bf16(tensors, path):
    """Write tensors, rounded to bf16, in the order of their names."""
    header, parts, offset = {}, [], 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().to(torch.bfloat16).contiguous()
        data = tensor.view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def load(path):
    """Read a file: name -> f32 tensor."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            flat = torch.frombuffer(data[first:last], dtype=TYPES[entry["dtype"]])
            tensors[name] = flat.view(entry["shape"]).float()
    return tensors
