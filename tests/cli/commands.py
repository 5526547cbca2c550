"""Commands as they are typed, run in this process."""

from __future__ import annotations

from click.testing import CliRunner

from mlflow_trt.cli.main import main

HERE = "tensorrt_rtx==1.6.1.120,sm_89"
ELSEWHERE = "tensorrt_rtx==1.4.0.76,sm_75"
"""Machines that the manifest of the tests loads on, and not."""


def run(*arguments: object, columns: int = 120):
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, [str(argument) for argument in arguments])
