"""The notebook way: features and PCA of a folder of photos as most notebooks of this kind do, by Spark and Keras.

`spark-submit notebook_program.py FORM FOLDER OUT WEIGHTS` reads `FOLDER/<split>/<label>/*.jpg` as binary files, takes
the label from the folder, runs MobileNetV2 in an iterator pandas UDF around `keras.predict`, scales, fits and applies
Spark's PCA, and writes Parquet. The form `best` keeps the features on disk, has one task a core, one thread a network
and no per-row Python; `usual` is what people write: every action makes the features anew.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

SIDE, COMPONENTS, CORES = 224, 100, 2


def main() -> None:
    """Read, featurize, scale, project and write."""
    from pyspark.ml.feature import PCA, StandardScaler
    from pyspark.sql import SparkSession, functions
    from pyspark.storagelevel import StorageLevel

    form, folder, out, weights = sys.argv[1:]
    best = form == "best"
    spark = SparkSession.builder.appName("notebook").config("spark.log.level", "WARN").getOrCreate()
    if best:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "256")
    files = spark.read.format("binaryFile").option("pathGlobFilter", "*.jpg").option("recursiveFileLookup", "true")
    images = files.load(folder).withColumn("label", functions.element_at(functions.split("path", "/"), -2))
    images = images.repartition(CORES if best else 20)
    features = images.select("path", "label", featurizer(weights, best=best)("content").alias("features"))
    if best:
        features = features.persist(StorageLevel.MEMORY_AND_DISK)
    vectors = features.select("path", "label", to_vector(best=best)("features").alias("vector"))
    scaler = StandardScaler(inputCol="vector", outputCol="scaled", withMean=True, withStd=True).fit(vectors)
    scaled = scaler.transform(vectors)
    pca = PCA(k=COMPONENTS, inputCol="scaled", outputCol="pca").fit(scaled)
    pca.transform(scaled).select("path", "label", "pca").write.mode("overwrite").parquet(out)
    spark.stop()


def featurizer(weights: str, *, best: bool) -> Any:
    """The UDF from the bytes of photos to features."""
    import pandas as pd
    from pyspark.sql.pandas.functions import pandas_udf
    from pyspark.sql.types import ArrayType, FloatType

    def features(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        import numpy as np

        network = load_network(weights, threads=1 if best else 0)
        for batch in batches:
            photos = np.stack([pixels(content) for content in batch])
            rows = network.predict(photos, verbose=0) if best else network.predict(photos)
            yield pd.Series(list(rows))

    return pandas_udf(features, ArrayType(FloatType()))  # type: ignore[call-overload]


def load_network(weights: str, threads: int) -> Any:
    """MobileNetV2 without its classifier; so many threads, or 0 for TensorFlow's choice."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    shape = (SIDE, SIDE, 3)
    return keras.applications.MobileNetV2(shape, include_top=False, weights=weights or None, pooling="avg")


def pixels(content: bytes) -> Any:
    """A photo as the network's input, -1 to 1."""
    import io

    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIDE, SIDE))
    return np.asarray(image, dtype=np.float32) / 127.5 - 1


def to_vector(*, best: bool) -> Any:
    """From a column of arrays to one of vectors."""
    from pyspark.ml.functions import array_to_vector
    from pyspark.ml.linalg import Vectors, VectorUDT
    from pyspark.sql.functions import udf

    return array_to_vector if best else udf(Vectors.dense, VectorUDT())


if __name__ == "__main__":
    main()
