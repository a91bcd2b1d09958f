"""Arrow shards of decoded pictures, memory-mapped, with checksums; knows nothing of labels or splits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from melanoma.errors import DataError
from melanoma.files import sha256_of
from melanoma.images import Uint8Array


def write_shard(path: Path, image_ids: Sequence[str], pictures: Sequence[Uint8Array]) -> str:
    """Write ``(H, W, 3)`` uint8 pictures of one size as an Arrow IPC file and return its sha256."""
    num_bytes = pictures[0].size
    storage = pa.Array.from_buffers(
        pa.binary(num_bytes), len(pictures), [None, pa.py_buffer(np.stack(pictures).tobytes())]
    )
    table = pa.table({"image_id": pa.array(list(image_ids), pa.string()), "pixels": storage})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sha256_of(path)


def open_shard(path: Path, shape: tuple[int, int]) -> Uint8Array:
    """Map a shard into memory and return its pictures as a read-only ``(N, H, W, 3)`` uint8 view.

    Raises:
        DataError: if the file is missing or its pictures have another size.
    """
    if not path.is_file():
        raise DataError(f"the data set must hold {path.name}, it is missing; prepare the data set again.")
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    column = table.column("pixels").chunk(0)  # written as one batch; combining chunks would copy it into memory
    expected = shape[0] * shape[1] * 3
    if not pa.types.is_fixed_size_binary(column.type) or column.type.byte_width != expected:
        raise DataError(f"{path.name} must hold pictures of {shape[1]} x {shape[0]} px; prepare the data set again.")
    flat = np.frombuffer(
        column.buffers()[1], dtype=np.uint8, count=len(column) * expected, offset=column.offset * expected
    )
    return flat.reshape(len(column), *shape, 3)
