"""What evaluation and scoring share."""

import pytest
import torch

from melanoma.judging import in_threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_keep_the_order_and_pass_errors_on(num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert in_threads(lambda n: n * n, range(100)) == [n * n for n in range(100)]
        assert in_threads(str, []) == []
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda n: 1 // n, [1, 0, 2])
    finally:
        torch.set_num_threads(before)
