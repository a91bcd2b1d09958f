from pathlib import Path

import numpy as np

from melanoma.data.shards import open_shard, write_shard


def test_a_shard_gives_back_what_was_written_whatever_its_order_in_memory(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    for order in "CF":
        path = tmp_path / f"{order}.arrow"
        write_shard(path, ["a", "b", "c"], [np.asarray(image, order=order) for image in images])
        assert (open_shard(path, (4, 5)) == images).all()
        write_shard(path, ["a"], [np.asarray(images[0], order=order)])
        assert (open_shard(path, (4, 5)) == images[:1]).all()
