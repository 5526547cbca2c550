"""A plan goes in, an engine that answers comes out; nothing here imports torch."""
