"""``python -m mlflow_trt`` is ``mlflow-trt``."""

from .cli import main

main(prog_name="mlflow-trt")
