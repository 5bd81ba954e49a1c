"""The assignment problem: one column for every row of a square matrix, each used once, of the largest sum.

Shortest augmenting paths (Kuhn 1955; Jonker, Volgenant 1987): C³ operations at most.

Shapes: `C` rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def best_assignment(values: Tensor) -> Tensor:
    """The permutation π with the largest Σ values[i, π(i)]: int64 (C,).

    Args:
        values: (C, C), finite.
    """
    cost = -values.detach().double().cpu().numpy()
    count = len(cost)
    row_of = np.full(count + 1, -1)  # of each column; the last column is none, where the search of a row begins
    row_price, column_price = np.zeros(count), np.zeros(count + 1)
    for row in range(count):
        # grow a tree of alternating paths from `row`, always to the nearest column, until a free one is reached
        column, row_of[count] = count, row
        distance, visited = np.full(count, np.inf), np.zeros(count + 1, dtype=bool)
        before = np.full(count, count)  # the column from which each was reached
        while row_of[column] >= 0:
            visited[column] = True
            open_columns = ~visited[:count]
            reduced = cost[row_of[column]] - row_price[row_of[column]] - column_price[:count]
            nearer = open_columns & (reduced < distance)
            distance[nearer], before[nearer] = reduced[nearer], column
            nearest = int(np.where(open_columns, distance, np.inf).argmin())
            step = distance[nearest]
            row_price[row_of[visited]] += step
            column_price[visited] -= step
            distance[open_columns] -= step
            column = nearest

        # exchange along the path
        while column != count:
            row_of[column] = row_of[before[column]]
            column = int(before[column])
    permutation = np.empty(count, dtype=np.int64)
    permutation[row_of[:count]] = np.arange(count)
    return torch.from_numpy(permutation).to(values.device)
