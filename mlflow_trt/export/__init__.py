"""A registry version for other servers, where one machine is outgrown.

* :mod:`.triton`: a model in a repository of NVIDIA's Triton Inference Server; :mod:`.selection` decides which plans it
  can load, :mod:`.configuration` what ``config.pbtxt`` says, :mod:`.pbtxt` how that is written;
* :mod:`.kserve`: an InferenceService whose container runs ``mlflow-trt serve``.
"""

from __future__ import annotations

from .kserve import export_kserve
from .triton import Exported, export_triton

__all__ = ["Exported", "export_kserve", "export_triton"]
