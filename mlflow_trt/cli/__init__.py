"""The command line, ``mlflow-trt``: thin commands over the public functions."""
