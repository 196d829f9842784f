"""The vocabulary: SentencePiece's pieces, then <|endofchunk|>, <image> and <PAD>."""

from tensors import ConvertError, StackedTensor, ZeroRows

ADDED = 3                       # <|endofchunk|>, <image>, <PAD>
PIECES = ("<unk>", "<s>", "</s>")


def _varint(data, at):
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data):
    """The fields of a protocol buffer message: (number, value)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at:at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at:at + size], at + size
        else:
            raise ValueError("not a protocol buffer")
        if at > len(data):
            raise ValueError("cut off")
        yield tag >> 3, value


def count_pieces(file):
    """How many pieces a tokenizer.model has; its first three must be those of LLaMA."""
    try:
        with open(file, "rb") as stream:
            data = stream.read()
        pieces = [value for number, value in _fields(data) if number == 1]
        first = tuple(dict(_fields(piece)).get(1, b"").decode() for piece in pieces[:3])
    except OSError as error:
        raise ConvertError(f'could not read "{file}": {error.strerror}') from None
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConvertError(f'"{file}" is not a model of SentencePiece') from None
    if first != PIECES:
        raise ConvertError(f'the first pieces of "{file}" are {list(first)}, not {list(PIECES)}')
    return len(pieces)


def join_rows(name, llama, trained, pieces, notes):
    """The table [pieces + 3, hidden] of this name; llama and trained may be None.

    The original's loader takes the trained table whole where there is one, so do we.  It
    makes up random rows for what no file holds; here they are zero, and a note says so.
    """
    rows = pieces + ADDED
    for tensor in (llama, trained):
        if tensor is not None and len(tensor.shape) != 2:
            raise ConvertError(f'tensor "{tensor.name}" of "{tensor.file}" has shape {list(tensor.shape)}; '
                               "2 dimensions are expected")
    if trained is not None and trained.shape[0] in (rows, rows - 1):
        return _fill(name, [(trained, trained.shape[0])], rows, notes)
    if llama is None:
        raise ConvertError(f'tensor "{name}" is missing: no file holds it')
    if llama.shape[0] not in (pieces, rows):
        raise ConvertError(f'wrong vocabulary: tensor "{llama.name}" of "{llama.file}" has {llama.shape[0]} rows, '
                           f"tokenizer.model has {pieces} pieces")
    if trained is not None:
        if trained.shape[0] not in (ADDED - 1, ADDED):
            raise ConvertError(f'wrong vocabulary: tensor "{trained.name}" of "{trained.file}" has {trained.shape[0]} '
                               f"rows, not {rows}: those of tokenizer.model and three more")
        if trained.shape[1] != llama.shape[1]:
            raise ConvertError(f'tensor "{trained.name}" of "{trained.file}" has {trained.shape[1]} columns, '
                               f"not {llama.shape[1]}")
        return _fill(name, [(llama, pieces), (trained, trained.shape[0])], rows, notes)
    return _fill(name, [(llama, llama.shape[0])], rows, notes)


def _fill(name, parts, rows, notes):
    """Stack parts, with rows of zeros below as far as needed."""
    missing = rows - sum(count for _, count in parts)
    if missing > 0:
        notes.append(f"{name}: no file holds the last {missing} of {rows} rows; they are zero")
        parts = [*parts, (ZeroRows((missing, *parts[0][0].shape[1:])), missing)]
    return parts[0][0] if len(parts) == 1 else StackedTensor(parts)
