"""``python -m mlflow_trt`` is ``mlflow-trt``."""

from .cli.main import main

main(prog_name="mlflow-trt")
