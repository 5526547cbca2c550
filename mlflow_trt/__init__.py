"""MLflow models whose weight is a raw TensorRT engine."""
