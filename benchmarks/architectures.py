"""Common architectures by name, small, with weights whose answers are of the order of one.

Nothing is downloaded: weights are random, each layer scaled so that what it answers has a standard deviation of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BATCH = (1, 4, 8)
"""Minimum, opt and maximum."""

Made = tuple[nn.Module, list[tuple[str, tuple[int, ...], str]]]
"""A module, and of each input its name, its shape without the batch, and its dtype."""

TORCHVISION = {
    "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64, "vgg11_bn": 64, "alexnet": 96,
    "densenet121": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "regnet_y_400mf": 64, "shufflenet_v2_x1_0": 64, "mnasnet1_0": 64, "googlenet": 64, "squeezenet1_1": 64,
    "convnext_tiny": 64, "swin_t": 64, "vit_b_16": 64, "maxvit_t": 64,
}  # fmt: skip
SEGMENTATION = {"fcn_resnet50": 64, "deeplabv3_mobilenet_v3_large": 64, "lraspp_mobilenet_v3_large": 64}
TIMM = {
    "tf_efficientnet_lite0": 64, "mobilenetv4_conv_small": 64, "convnext_atto": 64, "convnextv2_atto": 64,
    "nf_resnet26": 64, "levit_128s": 224, "deit_tiny_patch16_224": 64, "beit_base_patch16_224": 64,
    "swinv2_tiny_window8_256": 64, "cait_xxs24_224": 64, "mixer_s32_224": 64, "resmlp_12_224": 64,
    "poolformer_s12": 64, "edgenext_xx_small": 64, "mobilevit_xxs": 64, "repvgg_a0": 64, "ghostnet_100": 64,
    "hrnet_w18_small": 64, "dla34": 64, "res2net50_26w_4s": 64, "resnest14d": 64, "efficientformer_l1": 224,
    "rexnet_100": 64, "inception_v4": 96, "xception41": 64, "fastvit_t8": 64,
}  # fmt: skip
TEXT = (
    "bert", "distilbert", "roberta", "albert", "electra", "mpnet", "modernbert", "deberta-v2", "xlm-roberta",
    "gpt2", "gpt_neox", "opt", "llama", "qwen2", "mistral", "t5", "bart", "clip_text_model",
)  # fmt: skip
OTHER = ("vit", "dinov2", "segformer", "clip_vision_model", "wav2vec2", "whisper", "patchtst", "lstm", "pointnet")

STEADY = {
    **dict.fromkeys(("mobilenet_v3_small", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"), (0.25, 0.06)),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_v2_s", "tf_efficientnet_lite0", "xception41"), (0.25, 0.06)),
    "inception_v4": (0.5, 0.1),
}
"""Those that with random weights multiply rounding errors from layer to layer, as no trained network does (PyTorch's
own float16 answers are off by up to a fifth), and the spread of each layer's answers and the bias of each batch norm
with which they don't (:func:`calibrate`)."""

NAMES = (
    *(f"torchvision/{name}" for name in (*TORCHVISION, *SEGMENTATION)),
    *(f"timm/{name}" for name in TIMM),
    *(f"transformers/{name}" for name in TEXT),
    *(f"transformers/{name}" for name in OTHER if name not in ("lstm", "pointnet")),
    "torch/lstm",
    "torch/pointnet",
)


@dataclass(frozen=True)
class Architecture:
    """A module in evaluation mode, and of each input its name, its shape without the batch, and its dtype."""

    module: nn.Module
    inputs: list[tuple[str, tuple[int, ...], str]]

    def example(self, batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Inputs as people have them: token numbers, masks of ones and then zeros, values around zero."""
        found = {}
        for name, shape, dtype in self.inputs:
            size = (batch, *shape)
            if "mask" in name:
                lengths = torch.randint(1, shape[0] + 1, (batch, 1), generator=generator)
                found[name] = (torch.arange(shape[0]) < lengths).to(getattr(torch, dtype))
            elif dtype == "int64":
                found[name] = torch.randint(5, 900, size, generator=generator)
            else:
                found[name] = torch.randn(size, generator=generator)
        return found


def make(name: str) -> Architecture:
    """Makes an architecture; the same numbers every time.

    Raises:
        ImportError: Its library is not installed.
    """
    torch.manual_seed(0)
    library, _, kind = name.partition("/")
    module, inputs = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers, "torch": _torch}[
        library
    ](kind)
    made = Architecture(module.eval(), inputs)
    calibrate(made, *STEADY.get(kind, (1.0, 0.0)))
    return made


def calibrate(architecture: Architecture, spread: float, bias: float) -> None:
    """Scales each layer so that its answers are of the order of one.

    Batch-norm statistics stay those that a network begins with. With those of a batch, a random network multiplies
    every rounding error from layer to layer, and nothing could be told from its answers.

    Args:
        architecture: Whose weights are scaled.
        spread: The standard deviation of a layer's answers.
        bias: Of each batch norm. The larger, the less an answer depends on the input.
    """
    module = architecture.module
    for norm in module.modules():
        if bias and isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.bias, bias)
    tied = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}

    def scale(layer: Any, given: Any, answer: torch.Tensor) -> torch.Tensor:
        factor = float(answer.std()) / spread
        if not 1e-12 < factor < float("inf"):
            return answer
        layer.weight.data /= factor
        if layer.bias is not None:
            layer.bias.data /= factor
        return answer / factor

    hooks = []
    for layer in module.modules():
        if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Linear) and id(layer.weight) not in tied:
            if not layer.weight.any():  # some heads begin with zeros
                nn.init.normal_(layer.weight)
            hooks.append(layer.register_forward_hook(scale))
    with torch.no_grad():
        module(**architecture.example(8, torch.Generator().manual_seed(1)))
    for hook in hooks:
        hook.remove()


class _Call(nn.Module):
    """One tensor, or those under a few names, of what a model answers."""

    def __init__(self, model: nn.Module, pick: Callable[[Any], Any], names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.pick, self.names = model, pick, names


class Image(_Call):
    """Images in."""

    def forward(self, images: torch.Tensor) -> Any:
        return self.pick(self.model(images))


class Text(_Call):
    """Token numbers and their mask in."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.pick(self.model(input_ids=input_ids, attention_mask=attention_mask))


class Tokens(_Call):
    """Token numbers in."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.pick(self.model(input_ids=input_ids))


class Values(_Call):
    """One tensor in, by the name that the model has for it."""

    def forward(self, values: torch.Tensor) -> Any:
        return self.pick(self.model(**{self.names[0]: values}))


def _image(model: nn.Module, size: int, pick: Callable[[Any], Any] = lambda answer: answer) -> Made:
    return Image(model, pick, ()), [("images", (3, size, size), "float32")]


def _torchvision(kind: str) -> Made:
    import torchvision

    if kind in SEGMENTATION:
        model = getattr(torchvision.models.segmentation, kind)(weights=None, weights_backbone=None)
        return _image(model, SEGMENTATION[kind], lambda answer: answer["out"])
    size = TORCHVISION[kind]
    options: dict[str, Any] = {"vit_b_16": {"image_size": size}, "maxvit_t": {"input_size": (size, size)}}.get(kind, {})
    if kind == "maxvit_t":
        model = torchvision.models.MaxVit(
            (size, size), 32, 4, [32, 64], [1, 1], 16, stochastic_depth_prob=0.0, num_classes=100
        )
        return _image(model, size)
    if kind == "googlenet":
        options = {"aux_logits": False, "init_weights": True}
    return _image(getattr(torchvision.models, kind)(weights=None, **options), size)


def _timm(kind: str) -> Made:
    import timm

    size = TIMM[kind]
    sized = ("deit", "beit", "cait", "mixer", "resmlp", "swinv2")
    options = {"img_size": size} if kind.startswith(sized) else {}
    if kind.startswith("swinv2"):
        options["window_size"] = 4
    return _image(timm.create_model(kind, pretrained=False, **options), size)


_SMALL = {
    "vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
}  # fmt: skip
_TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", _SMALL),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"vocab_size": 1000, "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256},
    ),
    "roberta": ("RobertaConfig", "RobertaModel", _SMALL),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", _SMALL),
    "albert": ("AlbertConfig", "AlbertModel", {**_SMALL, "embedding_size": 64}),
    "electra": ("ElectraConfig", "ElectraModel", {**_SMALL, "embedding_size": 64}),
    "mpnet": ("MPNetConfig", "MPNetModel", _SMALL),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertModel",
        {**_SMALL, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "deberta-v2": ("DebertaV2Config", "DebertaV2Model", _SMALL),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 1000, "n_embd": 128, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _SMALL),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "vocab_size": 1000,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 256,
            "word_embed_proj_dim": 128,
        },
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_SMALL, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**_SMALL, "num_key_value_heads": 2}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_SMALL, "num_key_value_heads": 2}),
    "t5": (
        "T5Config",
        "T5EncoderModel",
        {"vocab_size": 1000, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4},
    ),
    "bart": (
        "BartConfig",
        "BartModel",
        {
            "vocab_size": 1000,
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
        },
    ),
    "clip_text_model": ("CLIPTextConfig", "CLIPTextModel", {**_SMALL, "bos_token_id": 1, "eos_token_id": 2}),
}
_OTHER: dict[str, tuple[str, str, dict[str, Any], str, tuple[int, ...]]] = {
    "vit": ("ViTConfig", "ViTModel", {**_SMALL, "image_size": 64}, "pixel_values", (3, 64, 64)),
    "dinov2": (
        "Dinov2Config",
        "Dinov2Model",
        {**_SMALL, "image_size": 56, "patch_size": 14},
        "pixel_values",
        (3, 56, 56),
    ),
    "segformer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
        "pixel_values",
        (3, 64, 64),
    ),
    "clip_vision_model": (
        "CLIPVisionConfig",
        "CLIPVisionModel",
        {**_SMALL, "image_size": 64, "patch_size": 16},
        "pixel_values",
        (3, 64, 64),
    ),
    "wav2vec2": (
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        {
            **_SMALL,
            "conv_dim": (32, 32),
            "conv_stride": (5, 4),
            "conv_kernel": (10, 8),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        "input_values",
        (1600,),
    ),
    "whisper": (
        "WhisperConfig",
        "WhisperModel",
        {
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "max_source_positions": 50,
            "vocab_size": 1000,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "input_features",
        (80, 100),
    ),
    "patchtst": (
        "PatchTSTConfig",
        "PatchTSTForPrediction",
        {
            "num_input_channels": 4,
            "context_length": 64,
            "prediction_length": 8,
            "d_model": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "patch_length": 8,
            "patch_stride": 8,
        },
        "past_values",
        (64, 4),
    ),
}
_CAUSAL = ("gpt2", "gpt_neox", "opt", "llama", "qwen2", "mistral")


def _transformers(kind: str) -> Made:
    import transformers

    ids = ("input_ids", (24,), "int64")
    if kind in _TEXT:
        config, cls, options = _TEXT[kind]
        model = getattr(transformers, cls)(getattr(transformers, config)(**options))
        model.config.use_cache = False
        if kind in _CAUSAL:
            return Tokens(model, lambda answer: answer.logits, ()), [ids]
        pick = lambda answer: answer.last_hidden_state  # noqa: E731
        return Text(model, pick, ()), [ids, ("attention_mask", (24,), "int64")]
    config, cls, options, name, shape = _OTHER[kind]
    model = getattr(transformers, cls)(getattr(transformers, config)(**options))
    if kind == "whisper":
        model = model.encoder
    field = {"segformer": "logits", "patchtst": "prediction_outputs"}.get(kind, "last_hidden_state")
    return Values(model, lambda answer: getattr(answer, field), (name,)), [("values", shape, "float32")]


class PointNet(nn.Module):
    """A set of points to classes: shared layers, and the maximum over all points."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 128, 1))
        self.head = nn.Linear(128, 10)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.head(self.shared(points.transpose(1, 2)).amax(2))


class Lstm(nn.Module):
    """A recurrent network, and its last state to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(values)[0][:, -1])


def _torch(kind: str) -> Made:
    if kind == "pointnet":
        return PointNet(), [("points", (128, 3), "float32")]
    return Lstm(), [("values", (12, 16), "float32")]
