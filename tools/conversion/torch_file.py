"""Read what torch.save and torch.jit.save wrote, without PyTorch and without running anything.

Such a file is a zip archive: NAME/data.pkl is a pickle of a tree of objects, in which a tensor
says which of the uncompressed entries NAME/data/KEY has its numbers, and where.  A pickle may ask
for any Python object to be called; here only dictionaries and tensors become what they
are, and everything else becomes an Opaque that holds what it was given and does nothing.

Files from before PyTorch 1.6 are not archives; those are read by PyTorch itself, with
weights_only=True, if it is installed.
"""

import collections
import pickle
import struct
import zipfile

from tensors import ITEM_SIZES, ArrayTensor, ConvertError, FileTensor

STORAGE_TYPES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
                 "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
                 "ByteStorage": "U8", "BoolStorage": "BOOL"}


class Opaque(dict):
    """Any object but a tensor or a dictionary: its arguments, items and state, and no behaviour."""

    __hash__ = object.__hash__

    def __new__(cls, *arguments, **options):
        made = super().__new__(cls)
        made.arguments, made.state, made.elements = arguments, None, []
        return made

    def __init__(self, *arguments, **options):
        super().__init__()

    def __eq__(self, other):
        return self is other

    def __setstate__(self, state):
        self.state = state

    def append(self, element):
        self.elements.append(element)

    def extend(self, elements):
        self.elements.extend(elements)


Storage = collections.namedtuple("Storage", "kind key count")
LooseTensor = collections.namedtuple("LooseTensor", "storage first shape strides")


class _Unpickler(pickle.Unpickler):
    """Makes the tree of a data.pkl."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, first, shape, strides, *rest: LooseTensor(storage, first, tuple(shape), tuple(strides))
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return lambda tensor, *rest: tensor
        if module.startswith("torch") and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        return type(name, (Opaque,), {})

    def persistent_load(self, identity):
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise pickle.UnpicklingError("a storage is described in a way that is not known")
        kind = identity[1] if isinstance(identity[1], str) else None
        return Storage(kind, str(identity[2]), identity[4])


def children(value):
    """The named things inside of a dictionary or object, in order."""
    if isinstance(value, dict):
        yield from value.items()
    if isinstance(value, Opaque) and isinstance(value.state, dict):
        yield from value.state.items()


def tensors_of(value, path="", above=()):
    """All (dotted name, LooseTensor) of a tree of dictionaries and modules; objects may hold themselves."""
    for name, child in children(value):
        if isinstance(child, LooseTensor):
            yield f"{path}{name}", child
        elif isinstance(child, dict) and id(child) not in above:
            yield from tensors_of(child, f"{path}{name}.", (*above, id(child)))


def find_number(value, key, seen=None):
    """The number that stands under this key anywhere in a tree; None if there is none."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, Opaque):
        if isinstance(value.get(key), (int, float)):
            return value[key]
        inner = [*value.values(), value.arguments, value.state, value.elements]
    elif isinstance(value, dict):
        if isinstance(value.get(key), (int, float)):
            return value[key]
        inner = value.values()
    else:
        inner = value if type(value) in (list, tuple) else ()
    for child in inner:
        found = find_number(child, key, seen)
        if found is not None:
            return found
    return None


class _Archive:
    """Where the entries of a zip file lie."""

    def __init__(self, file):
        self.file = file
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ConvertError(f'"{file}" is a zip archive without the data.pkl of PyTorch')
            self.prefix = pickles[0][:-len("data.pkl")]
            self.entries = {entry.filename: entry for entry in archive.infolist()}
            order = self.prefix + "byteorder"
            if order in self.entries and archive.read(order) != b"little":
                raise ConvertError(f'"{file}" was written on a big-endian machine, which is not supported')
            with archive.open(pickles[0]) as stream:
                self.tree = _Unpickler(stream).load()

    def data_offset(self, name, key):
        """Where an entry's bytes begin, and how many there are."""
        entry = self.entries.get(f"{self.prefix}data/{key}")
        if entry is None:
            raise ConvertError(f'"{self.file}" lacks the data of tensor "{name}": it is damaged, or not all there')
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ConvertError(f'"{self.file}" was compressed afterwards; unpack it or save it again with torch.save')
        with open(self.file, "rb") as stream:
            stream.seek(entry.header_offset)
            header = stream.read(30)
        names, extra = struct.unpack("<HH", header[26:30])
        return entry.header_offset + 30 + names + extra, entry.file_size

    def tensor(self, name, loose):
        storage = loose.storage
        if storage.kind is None:
            raise ConvertError(f'tensor "{name}" of "{self.file}" has a type that is not known')
        offset, size = self.data_offset(name, storage.key)
        item = ITEM_SIZES[storage.kind]
        return FileTensor(name, self.file, storage.kind, loose.shape, offset + loose.first * item,
                          size // item - loose.first, loose.strides)


def state_dict(tree):
    """The weights of a checkpoint that holds other things beside them."""
    for key in ("model_state_dict", "state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            return tree[key]
    return tree


def open_torch(file):
    """The tensors of a .pt or .bin file, name -> tensor, and the tree that holds all else."""
    try:
        if zipfile.is_zipfile(file):
            archive = _Archive(file)
            found = dict(tensors_of(state_dict(archive.tree)))
            return {name: archive.tensor(name, loose) for name, loose in found.items()}, archive.tree
        with open(file, "rb") as stream:
            if stream.read(2) == b"PK":
                raise ConvertError(f'"{file}" is damaged, or not all there')
    except ConvertError:
        raise
    except Exception as error:          # a damaged zip or pickle raises nearly anything
        raise ConvertError(f'"{file}" is damaged, or not a file of PyTorch: {error}') from None
    return _open_legacy(file)


def _open_legacy(file):
    """The same for a file from before PyTorch 1.6, which has to be read whole."""
    try:
        import torch
    except ImportError:
        raise ConvertError(f'"{file}" is not a zip archive; if it is a file from before PyTorch 1.6, PyTorch '
                           "has to be installed to read it") from None
    try:
        tree = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:          # PyTorch has no class of its own for it
        raise ConvertError(f'"{file}" could not be read: {str(error).splitlines()[0]}') from None
    kinds = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    found = {}
    weights = state_dict(tree)
    for name, tensor in weights.items() if isinstance(weights, dict) else ():
        if isinstance(tensor, torch.Tensor) and tensor.dtype in kinds:
            values = tensor.detach().contiguous()
            values = values.view(torch.int16).numpy().view("<u2") if tensor.dtype == torch.bfloat16 else values.numpy()
            found[name] = ArrayTensor(name, file, kinds[tensor.dtype], values)
    return found, tree
