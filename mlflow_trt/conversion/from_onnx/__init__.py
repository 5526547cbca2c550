"""Conversion of a graph that is ONNX already, without torch.

:mod:`.model` (the graph, read and checked), and, one file each, the steps that make a plan of it.
"""
