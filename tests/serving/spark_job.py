"""A Spark job that scores a table with a model: ``spark_job.py MASTER MODEL ROWS OUT``; prints what is refused.

Started as a program, as jobs are, so that its JVM ends with it; with Python's ``-P``, as ``light.py`` is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import mixed

QUICK = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": QUICK,
    "spark.executor.extraJavaOptions": QUICK,
    "spark.ui.enabled": "false",
    # Two executors stand for two machines; the job begins when both are there.
    "spark.executor.cores": "1",
    "spark.executor.memory": "512m",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    "spark.task.maxFailures": "1",
    # As dear as a whole part: small files are read together otherwise.
    "spark.sql.files.openCostInBytes": "128m",
}
LARGEST_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
UNDIVIDED = "spark.sql.execution.arrow.pythonUDF.columnarInput.enabled"
"""On by default in Spark 4.3: a parquet reader's batches reach the function as they are, however large."""


def main(master: str, model_uri: str, rows: int, out: str) -> None:
    builder = SparkSession.builder.master(master)
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    with builder.getOrCreate() as spark:
        tensors = mixed.flat(mixed.inputs(rows))
        table = [(row, *(t[row].tolist() for t in tensors.values())) for row in range(rows)]
        # Read from files, in as many parts: a table that Spark made itself is handed over in another way.
        spark.createDataFrame(spark.sparkContext.parallelize(table, 4), mixed.SPARK_TABLE).write.parquet("table")
        frame = spark.read.parquet("table")
        score = mlflow.pyfunc.spark_udf(spark, model_uri, result_type=mixed.SPARK_TYPE, extra_env=mixed.ENV)

        spark.conf.set(LARGEST_BATCH, mixed.MOST_ROWS)
        spark.conf.set(UNDIVIDED, False)
        for _ in range(2):
            frame.withColumn("answer", score(*tensors)).write.mode("overwrite").parquet(out)

        spark.conf.set(LARGEST_BATCH, 10_000)
        try:
            frame.coalesce(1).withColumn("answer", score(*tensors)).collect()
        except PySparkException as error:
            print(error)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
