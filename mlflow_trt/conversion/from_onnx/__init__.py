"""Conversion of a graph that is ONNX already, without torch.

:mod:`.model` (the graph: read by :mod:`.parsing`, its weights by :mod:`.external_data`, refused by :mod:`.checks`),
and, one file each, the steps that make a plan of it. :mod:`.plain` writes it in operators that TensorRT's parser takes,
on a :mod:`.skeleton` without weights: :mod:`.functions` written out, :mod:`.classical` operators of scikit-learn's,
:mod:`.branches` that are always taken, :mod:`.loops`, :mod:`.outputs`, and :mod:`.pruning` of what is left over.
"""
