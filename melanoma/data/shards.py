"""Memory-mapped Arrow shards of decoded images. Knows nothing of labels or splits."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from melanoma.arrays import Uint8Array
from melanoma.errors import DataError
from melanoma.io.files import write_bytes
from melanoma.io.storage import AnyPath


def write_shard(path: AnyPath, image_ids: Sequence[str], images: Sequence[Uint8Array]) -> str:
    """Write ``(H, W, 3)`` uint8 images of one size as an Arrow IPC file and return its sha256."""
    num_bytes = images[0].size
    pixels = np.ascontiguousarray(np.stack(images))  # a turned image may have another order
    storage = pa.Array.from_buffers(pa.binary(num_bytes), len(images), [None, pa.py_buffer(pixels)])
    table = pa.table({"image_id": pa.array(list(image_ids), pa.string()), "pixels": storage})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def open_shard(path: AnyPath, shape: tuple[int, int]) -> Uint8Array:
    """Return the images of a shard as a read-only ``(N, H, W, 3)`` uint8 view.

    A local file is mapped into memory. From object storage it is read whole.

    Args:
        path: the shard.
        shape: (H, W) of its images, px.

    Raises:
        DataError: if the file is missing or its images have another size.
    """
    if not path.is_file():
        raise DataError(
            f"The data set must hold {path.name}; it is missing. Prepare the data set again."
        )
    source = (
        pa.memory_map(str(path)) if isinstance(path, Path) else pa.BufferReader(path.read_bytes())
    )
    table = pa.ipc.open_file(source).read_all()
    # A shard is written as one batch, so it has one chunk. Combining chunks would copy the pixels.
    column = table.column("pixels").chunk(0)
    expected = shape[0] * shape[1] * 3
    if not pa.types.is_fixed_size_binary(column.type) or column.type.byte_width != expected:
        raise DataError(
            f"{path.name} must hold images of {shape[1]} x {shape[0]} px; its images have another"
            " size. Prepare the data set again."
        )
    flat = np.frombuffer(
        column.buffers()[1],
        dtype=np.uint8,
        count=len(column) * expected,
        offset=column.offset * expected,
    )
    return flat.reshape(len(column), *shape, 3)
