"""Read and write safetensors files: a JSON header, then the tensors' bytes."""

import json
import os
import struct

import numpy

from tensors import ITEM_SIZES, ConvertError, FileTensor, blocks, element_count

MAX_HEADER = 100_000_000        # bytes; the format's own limit


def read_header(file):
    """The header, and where the data begins."""
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER
        if length >= MAX_HEADER or 8 + length > size:
            raise ConvertError(f'"{file}" is not a safetensors file, or not all of one')
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ConvertError(f'the header of "{file}" is not valid JSON: {error}') from None
    if not isinstance(header, dict):
        raise ConvertError(f'the header of "{file}" is not a JSON object')
    return header, 8 + length, size


def open_safetensors(file):
    """The tensors of a file: name -> FileTensor."""
    header, start, size = read_header(file)
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
            known = kind in ITEM_SIZES and all(isinstance(n, int) and n >= 0 for n in [*shape, first, last])
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise ConvertError(f'tensor "{name}" of "{file}" has a type or shape that is not known')
        if last < first or start + last > size or last - first != element_count(shape) * ITEM_SIZES[kind]:
            raise ConvertError(f'the data of tensor "{name}" in "{file}" does not fit its shape, or ends behind the file')
        found[name] = FileTensor(name, file, kind, shape, start + first, element_count(shape))
    return found


def encode(values, kind, name):
    """f32 numbers as bytes of a type; none may become infinite."""
    if kind == "BF16":
        bits = values.view(numpy.uint32)
        encoded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
        finite = ((encoded & 0x7F80) != 0x7F80).all()
    else:
        with numpy.errstate(over="ignore"):
            encoded = values.astype("<f2" if kind == "F16" else "<f4")
        finite = numpy.isfinite(encoded).all()
    if not finite or not numpy.isfinite(values).all():
        raise ConvertError(f'tensor "{name}" holds a number that is not finite in {kind}')
    return encoded.tobytes()


def plan_file(tensors):
    """Header of a file and the bytes of its data; tensors: name -> (tensor, type)."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in ordered(tensors):
        tensor, kind = tensors[name]
        size = element_count(tensor.shape) * ITEM_SIZES[kind]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), offset


def ordered(tensors):
    """Wider types first, so that every tensor is aligned to its type."""
    return sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name][1]], name))


def write_safetensors(path, tensors, progress):
    """Write a file block by block; it has its name only when it is whole.

    progress(name, done, total) is called behind each block, with bytes.
    """
    header, total = plan_file(tensors)
    partial, done = path + ".partial", 0
    try:
        with open(partial, "wb") as stream:
            stream.write(struct.pack("<Q", len(header)) + header)
            for name in ordered(tensors):
                tensor, kind = tensors[name]
                for block in blocks(tensor):
                    data = encode(block, kind, name)
                    stream.write(data)
                    done += len(data)
                    progress(name, done, total)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
