"""Which version of a model answers, and how the next one takes its place."""
