"""Vectors as tables hold them."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def matrix(vectors: pa.ListArray) -> NDArray[np.float32]:
    """A list column as a matrix, shape ``(rows, d)``."""
    return np.asarray(vectors.flatten(), dtype=np.float32).reshape(len(vectors), -1)
