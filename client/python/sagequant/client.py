"""The synchronous client: QuantizationManager for calibrating and loading, UnifiedInferenceClient for generating."""
from __future__ import annotations

import json
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import grpc

from sagequant import _convert as convert
from sagequant._wire import (artifact_pb2, artifact_pb2_grpc, engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc,
                             operation_pb2, operation_pb2_grpc, quantization_pb2, quantization_pb2_grpc, report_pb2,
                             report_pb2_grpc)
from sagequant._convert import Completion, Update
from sagequant.config import Artifact, KernelBinding, KVQuantPlan, Kernel, QuantConfig, kernel_request
from sagequant.connection import Connection
from sagequant.errors import UnsupportedError, from_rpc
from sagequant.protocol import QuantizationProtocol

OnProgress = Callable[[int, int, str], None]  # done, total, what runs now


class Channel:
    """One connection and the stubs of every service; its calls raise SageError."""

    def __init__(self, connection: Connection) -> None:
        self._channel = connection.open(grpc)
        self._metadata = connection.metadata()
        self._timeout = connection.timeout
        self.engines = engine_pb2_grpc.EngineServiceStub(self._channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self.quantization = quantization_pb2_grpc.QuantizationServiceStub(self._channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self._channel)
        self.reports = report_pb2_grpc.ReportServiceStub(self._channel)
        self.artifacts = artifact_pb2_grpc.ArtifactServiceStub(self._channel)

    def call(self, method: Any, request: Any, unbounded: bool = False) -> Any:
        try:
            return method(request, metadata=self._metadata, timeout=None if unbounded else self._timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def stream(self, method: Any, request: Any, unbounded: bool = False) -> Iterator[Any]:
        """Ends the call when the iteration is left early."""
        call = method(request, metadata=self._metadata, timeout=None if unbounded else self._timeout)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        finally:
            call.cancel()

    def follow(self, operation: Any, progress: Optional[OnProgress] = None) -> Any:
        """Waits until an operation has ended and answers it; raises its error. Ctrl-C asks the daemon to stop it."""
        try:
            if not convert.ended(operation):
                request = operation_pb2.WatchOperationRequest(id=operation.id)
                for operation in self.stream(self.operations.WatchOperation, request, unbounded=True):
                    if progress is not None:
                        progress(operation.progress.done, operation.progress.total, operation.progress.stage)
        except KeyboardInterrupt:
            self.call(self.operations.CancelOperation, operation_pb2.CancelOperationRequest(id=operation.id))
            raise
        return convert.check_operation(operation)

    def close(self) -> None:
        self._channel.close()


class Runtime:
    """A running engine: what `load_quantized` answers and `chat(runtime=...)` takes. May be a context manager."""

    def __init__(self, channel: Channel, engine: Any) -> None:
        self._channel = channel
        self.engine_id: str = engine.engine_id
        self.quantization: str = engine.quantization
        self.backend: str = engine.backend
        self.weight_bytes: int = engine.weight_bytes
        self.kv_bytes: int = engine.kv_bytes
        self.load_ms: float = engine.load_ms
        self.bindings: Tuple[KernelBinding, ...] = convert.bindings_of(engine)
        self.kernel: str = convert.main_kernel(self.bindings)
        self.kv_plan: KVQuantPlan = convert.kv_plan_of(engine)

    def info(self) -> Dict[str, Any]:
        request = engine_pb2.GetEngineRequest(engine_id=self.engine_id)
        return convert.engine_record(self._channel.call(self._channel.engines.GetEngine, request))

    def stop(self, drain_seconds: float = 30) -> None:
        request = engine_pb2.StopEngineRequest(engine_id=self.engine_id)
        request.drain_timeout.FromMilliseconds(int(drain_seconds * 1000))
        self._channel.call(self._channel.engines.StopEngine, request, unbounded=True)

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Runtime({self.engine_id!r}, {self.quantization!r}, {self.backend!r})"


class QuantizationManager(QuantizationProtocol):
    """Calibrates, loads, asks for kernels and reports, all by the daemon. The keywords are those of Connection. A `config` given to a call
    stands in for the manager's own in that call."""

    def __init__(self, config: Optional[QuantConfig] = None, *, progress: Optional[OnProgress] = None, **connection: Any) -> None:
        self.config = config or QuantConfig()
        self.kernel: Optional[str] = None
        self.report_metrics: Dict[str, float] = {}
        self.artifact: Optional[Artifact] = None
        self._progress = progress
        self._channel = Channel(Connection(**connection))

    def calibrate(self, model_path: str, dataset_path: Optional[str] = None, config: Optional[QuantConfig] = None, *,
                  output: Optional[str] = None, samples: int = 0, sequence_length: int = 0, seed: int = 0,
                  format: Optional[str] = None) -> Artifact:
        """Quantizes a model the daemon has and answers the artifact's name. A local dataset file travels with the request."""
        request = convert.calibrate_request(config or self.config, model_path, dataset_path, output, samples, sequence_length, seed, format)
        operation = self._channel.call(self._channel.quantization.Calibrate, request)
        self.artifact = convert.to_artifact(self._channel.follow(operation, self._progress))
        self.report_metrics = convert.calibration_metrics(self.artifact)
        return self.artifact

    def load_quantized(self, model_path: str, config: Optional[QuantConfig] = None, *, engine_id: Optional[str] = None,
                       **options: Any) -> Runtime:
        """Starts an engine on an artifact (or any model). `options` are fields of StartEngineRequest: max_seqs, ..."""
        request = convert.start_request(str(model_path), config or self.config, engine_id, options)
        runtime = Runtime(self._channel, self._channel.call(self._channel.engines.StartEngine, request, unbounded=True))
        self.kernel = runtime.kernel
        self.report_metrics.update(load_ms=runtime.load_ms, engine_weight_bytes=float(runtime.weight_bytes),
                                   kv_bytes=float(runtime.kv_bytes))
        return runtime

    def select_kernel(self, config: Optional[QuantConfig] = None) -> str:
        """The name of the kernel that would run; UnsupportedError (NO_KERNEL) says why none would."""
        return self.explain_kernel(config=config).name

    def explain_kernel(self, inputs: int = 0, outputs: int = 0, kernel: Optional[str] = None,
                       config: Optional[QuantConfig] = None) -> Kernel:
        request = kernel_request(config or self.config, inputs, outputs, kernel)
        return convert.to_kernel(self._channel.call(self._channel.quantization.SelectKernel, request))

    def report(self) -> Dict[str, float]:
        """What calibrating, loading and evaluating measured so far."""
        return dict(self.report_metrics)

    def evaluate(self, dataset_path: str, artifact: Optional[str] = None, *, reference: Optional[str] = None, windows: int = 0,
                 window: int = 0, tasks: Optional[Mapping[str, str]] = None, speed: bool = True) -> Dict[str, Any]:
        """Measures what quantization cost against the unquantized model; the whole report. Its numbers join report()."""
        name = artifact or self.artifact
        if not name:
            raise UnsupportedError("evaluate: no artifact was named, and none was calibrated", "NO_ARTIFACT")
        request = convert.evaluate_request(str(name), dataset_path, reference, windows, window, tasks, speed)
        operation = self._channel.call(self._channel.reports.Evaluate, request)
        report: Dict[str, Any] = json.loads(self._channel.follow(operation, self._progress).result_json)
        self.report_metrics.update(convert.flatten(report))
        return report

    def artifacts(self) -> List[str]:
        answer = self._channel.call(self._channel.artifacts.ListArtifacts, artifact_pb2.ListArtifactsRequest(page_size=1000))
        return [a.name for a in answer.artifacts]

    def delete(self, artifact: str) -> None:
        self._channel.call(self._channel.artifacts.DeleteArtifact, artifact_pb2.DeleteArtifactRequest(name=str(artifact)))

    def get_available_backends(self) -> List[str]:
        """The backends that can run on the daemon's machine."""
        return [backend.name for backend in self.capabilities().backends if backend.available]

    def capabilities(self) -> quantization_pb2.ListCapabilitiesResponse:
        return self._channel.call(self._channel.quantization.ListCapabilities,  # type: ignore[no-any-return]
                                  quantization_pb2.ListCapabilitiesRequest())

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "QuantizationManager":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class UnifiedInferenceClient:
    """Generates on the daemon's engines. `default_llm_model` is the engine of calls that name none; without it the only one."""

    def __init__(self, connection: Connection, default_llm_model: str = "") -> None:
        self._channel = Channel(connection)
        self._engine = default_llm_model

    @classmethod
    def create(cls, control_plane_url: Optional[str] = None, default_llm_model: str = "", *, server: Optional[str] = None,
               **connection: Any) -> "UnifiedInferenceClient":
        """`control_plane_url` is the daemon's gRPC address, as `server` is; the keywords are those of Connection."""
        return cls(Connection(server=server or control_plane_url, **connection), default_llm_model)

    def chat(self, messages: Iterable[Mapping[str, Any]], runtime: Optional[Union[Runtime, str]] = None, *,
             tools: Optional[Sequence[Mapping[str, Any]]] = None, template_args: Optional[Mapping[str, Any]] = None,
             **options: Any) -> Completion:
        """One answer to a conversation of the OpenAI shape. `options`: max_tokens, temperature, seed, stop, logprobs, n, ..."""
        request = convert.chat_request(self._name(runtime), messages, tools, template_args, options)
        return self._gather(self._channel.generation.Chat, request, chat=True)

    def stream_chat(self, messages: Iterable[Mapping[str, Any]], runtime: Optional[Union[Runtime, str]] = None, *,
                    tools: Optional[Sequence[Mapping[str, Any]]] = None, template_args: Optional[Mapping[str, Any]] = None,
                    **options: Any) -> Iterator[Update]:
        """The same as updates while it is made. Leaving the iteration cancels the request."""
        request = convert.chat_request(self._name(runtime), messages, tools, template_args, options)
        return (Update(m) for m in self._channel.stream(self._channel.generation.Chat, request))

    def generate(self, prompt: Union[str, Sequence[int]], runtime: Optional[Union[Runtime, str]] = None,
                 **options: Any) -> Completion:
        """Continues a text or token ids."""
        return self._gather(self._channel.generation.Generate, convert.generate_request(self._name(runtime), prompt, options))

    def stream_generate(self, prompt: Union[str, Sequence[int]], runtime: Optional[Union[Runtime, str]] = None,
                        **options: Any) -> Iterator[Update]:
        request = convert.generate_request(self._name(runtime), prompt, options)
        return (Update(m) for m in self._channel.stream(self._channel.generation.Generate, request))

    def score(self, text: Union[str, Sequence[int]], runtime: Optional[Union[Runtime, str]] = None, *, window: int = 0,
              max_windows: int = 0) -> Dict[str, float]:
        """Log-likelihood of a text: nll, ppl, scored, windows."""
        request = generation_pb2.ScoreRequest(engine_id=self._name(runtime), window=window, max_windows=max_windows)
        convert.put_prompt(request, "text", text)
        answer = self._channel.call(self._channel.generation.Score, request)
        return {"nll": answer.nll, "ppl": answer.ppl, "scored": answer.scored, "windows": answer.windows}

    def tokenize(self, text: str, runtime: Optional[Union[Runtime, str]] = None, *, add_special: bool = True) -> List[int]:
        request = generation_pb2.TokenizeRequest(engine_id=self._name(runtime), text=text, no_special=not add_special)
        return list(self._channel.call(self._channel.generation.Tokenize, request).ids)

    def detokenize(self, ids: Sequence[int], runtime: Optional[Union[Runtime, str]] = None) -> str:
        request = generation_pb2.DetokenizeRequest(engine_id=self._name(runtime), ids=ids, no_special=True)
        return str(self._channel.call(self._channel.generation.Detokenize, request).text)

    def embed(self, *_: Any, **__: Any) -> None:
        raise UnsupportedError("embed: the daemon serves text generation only", "EMBEDDINGS_UNSUPPORTED")

    def models(self) -> List[Dict[str, Any]]:
        """The engines."""
        answer = self._channel.call(self._channel.engines.ListEngines, engine_pb2.ListEnginesRequest(page_size=1000))
        return [convert.engine_record(e) for e in answer.engines]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "UnifiedInferenceClient":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _name(self, runtime: Optional[Union[Runtime, str]]) -> str:
        return convert.engine_name(runtime, self._engine)

    def _gather(self, method: Any, request: Any, chat: bool = False) -> Completion:
        convert.ask_for_whole_answer(request)
        gather = convert.Gather(request, chat)
        for message in self._channel.stream(method, request):
            gather.add(message)
        return gather.done()
