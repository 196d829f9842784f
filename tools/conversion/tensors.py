"""Tensors that are read from their files a few rows at a time.

Every kind has a name and a file (for messages), a shape, and rows(first, last): that part
of the first dimension as f32 [last - first, ...].  Nothing is read before rows() is called,
so a conversion needs memory for one block of rows, not for a model.
"""

import os

import numpy

BLOCK_ELEMENTS = 1 << 24        # of a block of rows: 64 MB of f32

# Name of a type in safetensors -> what numpy reads; bf16 is widened by hand.
RAW_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
INTEGER_TYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1"}
ITEM_SIZES = {name: numpy.dtype(raw).itemsize for name, raw in {**RAW_TYPES, **INTEGER_TYPES}.items()}


class ConvertError(Exception):
    """What is wrong with the pieces, for the user."""


def element_count(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def to_f32(raw, kind):
    """Numbers as numpy read them, as f32."""
    if kind == "BF16":
        return (raw.astype(numpy.uint32) << 16).view(numpy.float32)
    return raw.astype(numpy.float32)


class FileTensor:
    """A tensor in a file: `available` elements of a type from byte `offset` on."""

    def __init__(self, name, file, kind, shape, offset, available, strides=None):
        self.name, self.file, self.kind = name, file, kind
        self.shape = tuple(shape)
        self.offset = offset
        self.strides = strides or contiguous_strides(self.shape)
        if min(self.shape, default=0) < 0 or min(self.strides, default=0) < 0:
            raise ConvertError(f'tensor "{name}" of "{file}" has a negative size')
        self.extent = 0             # elements from the first to the last
        if element_count(self.shape) > 0:
            self.extent = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides))
        if self.extent > available:
            raise ConvertError(f'tensor "{name}" of "{file}" does not fit its data: it needs {self.extent} '
                               f"numbers and has {available}")
        if offset < 0 or offset + self.extent * ITEM_SIZES[kind] > os.path.getsize(file):
            raise ConvertError(f'the data of tensor "{name}" ends behind "{file}": the file is not all there')

    def place(self):
        """What two names of the same numbers have in common."""
        return self.file, self.offset, self.shape, self.strides

    def rows(self, first, last):
        if self.kind not in RAW_TYPES:
            raise ConvertError(f'tensor "{self.name}" of "{self.file}" holds {self.kind}, not floating-point numbers')
        raw = numpy.dtype(RAW_TYPES[self.kind])
        flat = numpy.memmap(self.file, raw, "r", self.offset, (self.extent,))
        view = numpy.lib.stride_tricks.as_strided(
            flat, self.shape, [step * raw.itemsize for step in self.strides], writeable=False)
        return to_f32(numpy.ascontiguousarray(view[first:last]), self.kind)


class ArrayTensor:
    """A tensor in memory: numbers as numpy has them."""

    def __init__(self, name, file, kind, array):
        self.name, self.file, self.kind, self.shape, self.array = name, file, kind, array.shape, array

    def place(self):
        return self.file, id(self.array), self.shape, ()

    def rows(self, first, last):
        return to_f32(numpy.ascontiguousarray(self.array[first:last]), self.kind)


class ZeroRows:
    """Rows that no file has."""

    def __init__(self, shape):
        self.name, self.file, self.shape = "zeros", "", shape

    def rows(self, first, last):
        return numpy.zeros((last - first, *self.shape[1:]), numpy.float32)


class StackedTensor:
    """Parts one above the other: of each (tensor, rows) its first rows."""

    def __init__(self, parts):
        self.parts = parts
        self.name, self.file = parts[0][0].name, parts[0][0].file
        self.shape = (sum(count for _, count in parts), *parts[0][0].shape[1:])

    def rows(self, first, last):
        found, start = [], 0
        for tensor, count in self.parts:
            low, high = max(first - start, 0), min(last - start, count)
            if low < high:
                found.append(tensor.rows(low, high))
            start += count
        return numpy.concatenate(found)


class TransposedTensor:
    """A matrix the other way round; small ones only, since it is read whole."""

    def __init__(self, tensor):
        self.tensor, self.name, self.file = tensor, tensor.name, tensor.file
        self.shape = tensor.shape[::-1]

    def rows(self, first, last):
        return numpy.ascontiguousarray(self.tensor.rows(0, self.tensor.shape[0]).T[first:last])


class MergedTensor:
    """W + scale * B A: a matrix [out, in] with LoRA's A [r, in] and B [out, r] in it."""

    def __init__(self, tensor, a, b, scale):
        self.tensor, self.name, self.file, self.shape = tensor, tensor.name, tensor.file, tensor.shape
        self.a, self.b, self.scale = a, b, scale

    def rows(self, first, last):
        a = self.a.rows(0, self.a.shape[0])
        b = self.b.rows(first, last) * numpy.float32(self.scale)
        return self.tensor.rows(first, last) + b @ a


def contiguous_strides(shape):
    """Steps, in elements, of a tensor whose last dimension is dense."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    return tuple(strides)


def blocks(tensor):
    """The rows of a tensor, a few at a time, as f32."""
    height = tensor.shape[0]
    width = max(1, element_count(tensor.shape[1:]))
    step = max(1, BLOCK_ELEMENTS // width)
    for first in range(0, height, step):
        yield tensor.rows(first, min(first + step, height))
