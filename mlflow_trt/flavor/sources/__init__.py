"""Models that MLflow holds already, as what is converted.

:mod:`.stored` (which version a URI names, and its files here), :mod:`.flavors` (which of its flavors is converted),
:mod:`.torch_model` (an exported program, or pickled code where that is allowed), :mod:`.pickled` (what of an exported
program's file is pickled), :mod:`.onnx_model` (the graph's file), :mod:`.logged_inputs` (what was logged of its
inputs).
"""
