"""SageQuant's Python client: quantize language models, serve them and measure what it cost, all by the daemon sagequantd."""
from sagequant import errors
from sagequant._convert import Completion, Update
from sagequant.client import QuantizationManager, Runtime, UnifiedInferenceClient
from sagequant.config import Artifact, CalibrationRecord, Kernel, KernelBinding, KVQuantPlan, QuantConfig
from sagequant.connection import Connection
from sagequant.errors import SageError
from sagequant.protocol import QuantizationProtocol

__version__ = "0.1.0"
__all__ = ["Artifact", "CalibrationRecord", "Completion", "Connection", "Kernel", "KernelBinding", "KVQuantPlan", "QuantConfig",
           "QuantizationManager", "QuantizationProtocol", "Runtime", "SageError", "UnifiedInferenceClient", "Update", "errors"]
