"""The MLflow flavor: models are saved, logged, loaded and looked at."""
