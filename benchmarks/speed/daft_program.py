"""Daft at its best over the same photos: a program in an environment of its own, which has nothing of Fruits.

`python daft_program.py FLATBUFFER BUCKET ENDPOINT OUT COUNT` downloads, decodes, resizes and infers the first COUNT
photos of the bucket with the same flatbuffer as Fruits, in two threads, and writes keys and vectors as Parquet.
Daft does all but the inference in Rust. It neither hashes nor validates the photos.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, Series, col
from daft.io import IOConfig, S3Config

THREADS, BATCH, SIDE = 2, 64, 224


@daft.cls(max_concurrency=THREADS, cpus=1)
class Network:
    """The flatbuffer, loaded once in each thread: Daft calls one instance from several, and LiteRT frees the GIL."""

    def __init__(self, flatbuffer: str) -> None:
        self.flatbuffer = Path(flatbuffer).read_bytes()
        self.loaded = threading.local()

    def interpreter(self) -> Any:
        """The thread's interpreter."""
        from ai_edge_litert.interpreter import Interpreter

        if not hasattr(self.loaded, "interpreter"):
            self.loaded.interpreter = Interpreter(model_content=self.flatbuffer, num_threads=1)
            self.loaded.interpreter.allocate_tensors()
        return self.loaded.interpreter

    @daft.method.batch(return_dtype=DataType.list(DataType.float32()), batch_size=BATCH)
    def features(self, images: Series) -> pa.Array:
        """The vectors of a batch of images, each of the network's input size."""
        stored = images.to_arrow()
        flat = getattr(stored, "storage", stored).flatten().to_numpy(zero_copy_only=True)
        network, vectors = self.interpreter(), []
        pixels, vector = (end[0]["index"] for end in (network.get_input_details(), network.get_output_details()))
        for photo in flat.reshape(-1, 1, SIDE, SIDE, 3):
            network.set_tensor(pixels, photo)
            network.invoke()
            vectors.append(network.get_tensor(vector)[0])
        matrix = np.stack(vectors)
        offsets = pa.array(np.arange(len(matrix) + 1) * matrix.shape[1], pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(matrix.ravel()))


def main() -> None:
    """List, and do all in one query."""
    flatbuffer, bucket, endpoint, out, count = sys.argv[1:]
    server = IOConfig(
        s3=S3Config(
            endpoint_url=endpoint,
            region_name="us-east-1",
            key_id=os.environ["AWS_ACCESS_KEY_ID"],
            access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            max_connections=32,
        )
    )
    daft.set_planning_config(default_io_config=server)
    photos = daft.from_glob_path(f"s3://{bucket}/**/*.jpg", io_config=server).limit(int(count))
    images = col("path").download(io_config=server).decode_image(mode="RGB").resize(SIDE, SIDE)
    rows = photos.select(col("path"), images.cast(DataType.image("RGB", SIDE, SIDE)).alias("image"))
    network = Network(flatbuffer)
    rows.select(col("path"), network.features(col("image")).alias("vector")).write_parquet(out)


if __name__ == "__main__":
    main()
    os._exit(0)  # all is written; in one of some 15 runs a thread of Daft makes Python's own end a crash
