"""A registry version behind the Open Inference Protocol."""
