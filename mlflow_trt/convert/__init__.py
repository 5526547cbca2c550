"""A PyTorch model goes in, a plan comes out."""
