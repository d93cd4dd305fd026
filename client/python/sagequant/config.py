"""What to quantize to, in the words of SAGE's quantization protocol, and how those words go onto the wire."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Literal, Optional, Tuple, Union

from sagequant._wire import quantization_pb2 as wire
from sagequant.errors import InvalidArgumentError, UnsupportedError

_PRIORITY = {"latency": wire.PRIORITY_LATENCY, "throughput": wire.PRIORITY_THROUGHPUT, "memory": wire.PRIORITY_MEMORY}
_SCALE = {"fp16": "f16", "fp32": "f32", "bf16": "bf16", "f16": "f16", "f32": "f32", "": ""}


# SAGE's words. Where plug-ins add names of their own, any name is allowed beside them and the daemon checks it.
QuantDType = Union[Literal["int8", "int4", "fp8", "w8a16", "w8a8", "nf4"], str]
ActivationDType = Union[Literal["", "bf16", "int8", "fp8", "w8a16", "w8a8", "w4a16", "w4a8"], str]
CalibrationMethod = Union[Literal["awq", "gptq", "smoothquant", "percentile", "minmax", "mse", "rtn", "autoround", "awq+gptq", "qat"], str]
KVQuantType = Union[Literal["none", "int8", "fp8"], str]
Backend = Literal["auto", "cpu", "cuda", "tensorrt", "rocm", "ascend", "mlu", "kunlun"]
Priority = Literal["latency", "throughput", "memory"]
ScalePrecision = Literal["", "fp16", "fp32", "bf16", "f16", "f32"]


@dataclass
class QuantConfig:
    """Field for field SAGE's QuantConfig. `backend` is "auto" here: the daemon knows what it has. `scale_precision` is ""
    (the model's own dtype) here, because that is what other tools read.

    draft_mode makes load_quantized start an engine that guesses ahead from repetitions ("ngram"); its text stays the same.
    enable_qat makes the method "qat", whatever `calibration` says, and needs calibration text. fuse_ln and fuse_qdq change
    nothing (kernels fuse what they fuse).
    """

    weight_dtype: QuantDType = "int4"  # int4, int8, fp8, nf4, w8a16, w8a8, or a strategy's name
    activation_dtype: ActivationDType = ""  # "", bf16, int8, fp8, or composite: w8a16 reads as 16-bit activations
    calibration: CalibrationMethod = "minmax"  # awq, gptq, smoothquant, percentile, minmax, mse, rtn, autoround, awq+gptq, qat, ...
    group_size: int = 128  # inputs that share a scale; -1 = per channel; 0 = the largest that divides each layer
    symmetric: bool = True
    per_channel: bool = True
    kv_cache_dtype: KVQuantType = "none"  # none, int8, fp8, or a KV strategy's name
    clip_ratio: float = 0.0  # [0, 1); 0 = off
    enable_qat: bool = False
    fuse_ln: bool = True
    fuse_qdq: bool = True
    backend: Backend = "auto"
    priority: Priority = "throughput"
    draft_mode: bool = False
    scale_precision: ScalePrecision = ""  # "" = the model's dtype
    act_order: bool = False  # gptq: columns by falling importance
    rotate: bool = False  # hidden states and values turned by Hadamard matrices, folded into the weights
    weight_granularity: str = ""  # scales of fp8 weights: channel, tensor, block; "" = channel
    fp8_format: str = ""  # codes of fp8 weights: e4m3, e5m2; "" = e4m3
    double_quant: bool = False  # nf4, fp4: the scales are quantized too
    gptq_asymmetric_correction: bool = False  # gptq: GPTAQ's correction in place of least-squares weights
    gptq_f64: bool = False  # methods that solve by GPTQ: its factor and updates in f64
    exclude: Tuple[str, ...] = ()  # glob patterns over module names that stay as they are

    def get_available_backends(self, **connection: Any) -> List[str]:
        """The backends that can run on the daemon's machine; the keywords are those of Connection."""
        from sagequant.client import QuantizationManager
        with QuantizationManager(self, **connection) as manager:
            return manager.get_available_backends()

    def check(self) -> None:
        """Raises what the daemon could not do or would misread."""
        if self.priority not in _PRIORITY:
            raise InvalidArgumentError(f"priority: one of {', '.join(_PRIORITY)}, got {self.priority!r}", "UNKNOWN_PRIORITY")
        if self.scale_precision not in _SCALE:
            raise InvalidArgumentError(f"scale_precision: one of fp16, fp32, bf16, got {self.scale_precision!r}",
                                       "UNKNOWN_SCALE_PRECISION")
        if not self.per_channel and self.group_size == -1:
            raise UnsupportedError("per_channel: one scale a tensor is not supported for weights", "PER_TENSOR_UNSUPPORTED")

    def to_wire(self) -> wire.QuantConfig:
        self.check()
        return wire.QuantConfig(
            method="qat" if self.enable_qat else self.calibration, weight_dtype=self.weight_dtype, activation_dtype=self.activation_dtype,
            kv_dtype="" if self.kv_cache_dtype == "none" else self.kv_cache_dtype, group_size=self.group_size,
            group_size_auto=self.group_size == 0, asymmetric=not self.symmetric, act_order=self.act_order,
            rotate=self.rotate, weight_granularity=self.weight_granularity, fp8_format=self.fp8_format, double_quant=self.double_quant,
            gptq_asymmetric_correction=self.gptq_asymmetric_correction, gptq_f64=self.gptq_f64,
            clip_ratio=self.clip_ratio, scale_precision=_SCALE[self.scale_precision], exclude=list(self.exclude),
            priority=_PRIORITY[self.priority])


@dataclass(frozen=True)
class KVQuantPlan:
    """The layout that the KV pool and the prefix cache agree on."""

    dtype: str
    block_size: int
    group_size: int = 0
    scale_precision: str = ""


@dataclass(frozen=True)
class KernelBinding:
    """The kernel that runs one layer."""

    layer: str
    strategy: str
    kernel: str
    weight_bytes: int


@dataclass(frozen=True)
class CalibrationRecord:
    """What calibration decided for one layer; `error` is ||W - dequantized|| / ||W||."""

    name: str
    scheme: str
    error: float
    sha256: str
    bytes: int


class Artifact(str):
    """An artifact's name, with what the calibration that made it said."""

    path: str = ""
    operation: str = ""
    quantization: str = ""
    file_format: str = ""
    weight_bytes: int = 0
    source_bytes: int = 0
    bits_per_weight: float = 0.0
    seconds: float = 0.0
    layers: Tuple[CalibrationRecord, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """The kernel that would run, where, and why not the others."""

    name: str
    strategy: str
    backend: str
    capability: str
    refused: Tuple[Tuple[str, str], ...] = ()


def kernel_request(config: QuantConfig, inputs: int = 0, outputs: int = 0,
                   kernel: Optional[str] = None) -> wire.SelectKernelRequest:
    config.check()
    return wire.SelectKernelRequest(
        weight_dtype=config.weight_dtype, activation_dtype=config.activation_dtype,
        backend="" if config.backend == "auto" else config.backend, group_size=config.group_size,
        priority=_PRIORITY[config.priority], outputs=outputs, inputs=inputs,
        asymmetric=not config.symmetric, kernel=kernel or "")
