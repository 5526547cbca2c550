"""The Open Inference Protocol v2 on the wire: JSON with binary tensors, and protobuf."""
