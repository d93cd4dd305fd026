"""SAGE's QuantizationProtocol: what a quantization module offers the rest of SAGE. QuantizationManager is one."""
from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Dict

from sagequant.config import QuantConfig


class QuantizationProtocol(ABC):
    @abstractmethod
    def calibrate(self, model_path: str, dataset_path: str, config: QuantConfig) -> str:
        """Calibrates, and answers where the quantized model is."""

    @abstractmethod
    def load_quantized(self, model_path: str, config: QuantConfig) -> Any:
        """Loads a quantized model, and answers what runs it and the kernels bound to it."""

    @abstractmethod
    def select_kernel(self, config: QuantConfig) -> str:
        """The name of the best kernel for dtype, backend and machine."""

    @abstractmethod
    def report(self) -> Dict[str, float]:
        """What calibration and inference measured."""
