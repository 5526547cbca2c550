"""HTTP in processes of its own, beside the one that holds the engines."""
