"""What was measured of a model, and where MLflow shows it."""
