"""Which ranks make up a pipeline in a ragged grid."""

from __future__ import annotations

import pytest

# vLLM warns of its own code while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    ("degrees", "columns"),
    [
        ([1], [[0]]),
        ([2, 1], [[0, 2], [1, 2]]),
        ([1, 2, 1], [[0, 1, 3], [0, 2, 3]]),
        ([4, 1], [[0, 4], [1, 4], [2, 4], [3, 4]]),
        ([2, 3], [[0, 2], [1, 3], [1, 4]]),
    ],
)
def test_every_rank_is_in_a_column_and_in_its_stage_of_it(
    degrees: list[int], columns: list[list[int]]
) -> None:
    from shuntserve_plugins.engines.vllm.groups import columns_of, stages_of

    stages = stages_of(degrees)
    assert columns_of(stages) == columns
    for number, ranks in enumerate(stages):
        for rank in ranks:
            places = {column.index(rank) for column in columns if rank in column}
            assert places == {number}
