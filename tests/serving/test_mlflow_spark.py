"""``mlflow.pyfunc.spark_udf`` on a real cluster: a master, a worker, two executors, and the model that Spark sends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import servers

from . import mixed
from .mixed import mixed_folder as mixed_folder

pytestmark = pytest.mark.xdist_group("spark")
ROWS = 44
"""In four parts of 11, so that each ends with a batch of 3 after one of 8."""


@pytest.fixture(scope="module")
def job(tmp_path_factory, mixed_folder):
    """What the job printed, the table that it wrote, and what each executor's Python processes wrote to their log."""
    folder = tmp_path_factory.mktemp("spark")
    env = {"PYSPARK_PYTHON": sys.executable}
    with servers.spark_cluster(folder, env) as cluster:
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                Path(__file__).with_name("spark_job.py"),
                cluster.uri,
                mixed_folder,
                str(ROWS),
                "out",
            ],
            env={**os.environ, **cluster.env, **env},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        logs = [path.read_text() for path in cluster.files.glob("app-*/*/stderr")]
    return done.stdout, pd.read_parquet(folder / "out").sort_values("row"), logs


def test_executors_score_a_table_batch_by_batch(job):
    _, table, _ = job

    assert list(table["row"]) == list(range(ROWS))
    answers = pd.json_normalize(table["answer"])
    mixed.assert_answers({name: answers[name] for name in answers}, mixed.inputs(ROWS))


@pytest.mark.skipif(mixed.BACKEND != "reference", reason="only the reference backend's load is logged as a warning")
def test_each_executor_loads_the_model_once(job):
    _, _, logs = job

    assert [text.count(mixed.LOG_LINE) for text in logs] == [1, 1]


def test_batches_beyond_the_profile_say_what_would_fit(job):
    printed, _, _ = job

    assert re.search(rf"size {ROWS} in dimension 0 \(batch\) is above the maximum.\s+Expected: 1 to 8", printed)
