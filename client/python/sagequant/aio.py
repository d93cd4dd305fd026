"""The asynchronous client: the same calls as coroutines, streams as asynchronous iterators."""
from __future__ import annotations

import json
from typing import Any, AsyncIterator, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import grpc
import grpc.aio

from sagequant import _convert as convert
from sagequant._convert import Completion, Update
from sagequant._wire import (engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc, operation_pb2,
                             operation_pb2_grpc, quantization_pb2, quantization_pb2_grpc, report_pb2_grpc)
from sagequant.client import OnProgress
from sagequant.config import Artifact, KernelBinding, KVQuantPlan, Kernel, QuantConfig, kernel_request
from sagequant.connection import Connection
from sagequant.errors import UnsupportedError, from_rpc


class AsyncChannel:
    """One connection on the running event loop; its calls raise SageError."""

    def __init__(self, connection: Connection) -> None:
        self._channel = connection.open(grpc.aio)
        self._metadata = connection.metadata()
        self._timeout = connection.timeout
        self.engines = engine_pb2_grpc.EngineServiceStub(self._channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self.quantization = quantization_pb2_grpc.QuantizationServiceStub(self._channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self._channel)
        self.reports = report_pb2_grpc.ReportServiceStub(self._channel)

    async def call(self, method: Any, request: Any, unbounded: bool = False) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=None if unbounded else self._timeout)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    async def stream(self, method: Any, request: Any, unbounded: bool = False) -> AsyncIterator[Any]:
        call = method(request, metadata=self._metadata, timeout=None if unbounded else self._timeout)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        finally:
            call.cancel()

    async def follow(self, operation: Any, progress: Optional[OnProgress] = None) -> Any:
        """Waits until an operation has ended and answers it; raises its error. The operation outlives a cancelled task."""
        if not convert.ended(operation):
            request = operation_pb2.WatchOperationRequest(id=operation.id)
            async for operation in self.stream(self.operations.WatchOperation, request, unbounded=True):
                if progress is not None:
                    progress(operation.progress.done, operation.progress.total, operation.progress.stage)
        return convert.check_operation(operation)

    async def close(self) -> None:
        await self._channel.close()


class AsyncRuntime:
    """A running engine."""

    def __init__(self, channel: AsyncChannel, engine: Any) -> None:
        self._channel = channel
        self.engine_id: str = engine.engine_id
        self.quantization: str = engine.quantization
        self.backend: str = engine.backend
        self.load_ms: float = engine.load_ms
        self.bindings: Tuple[KernelBinding, ...] = convert.bindings_of(engine)
        self.kernel: str = convert.main_kernel(self.bindings)
        self.kv_plan: KVQuantPlan = convert.kv_plan_of(engine)

    async def stop(self, drain_seconds: float = 30) -> None:
        request = engine_pb2.StopEngineRequest(engine_id=self.engine_id)
        request.drain_timeout.FromMilliseconds(int(drain_seconds * 1000))
        await self._channel.call(self._channel.engines.StopEngine, request, unbounded=True)


class AsyncQuantizationManager:
    """QuantizationManager with coroutines."""

    def __init__(self, config: Optional[QuantConfig] = None, *, progress: Optional[OnProgress] = None, **connection: Any) -> None:
        self.config = config or QuantConfig()
        self.kernel: Optional[str] = None
        self.report_metrics: Dict[str, float] = {}
        self.artifact: Optional[Artifact] = None
        self._progress = progress
        self._channel = AsyncChannel(Connection(**connection))

    async def calibrate(self, model_path: str, dataset_path: Optional[str] = None, config: Optional[QuantConfig] = None, *,
                        output: Optional[str] = None, samples: int = 0, sequence_length: int = 0, seed: int = 0,
                        format: Optional[str] = None) -> Artifact:
        request = convert.calibrate_request(config or self.config, model_path, dataset_path, output, samples, sequence_length, seed, format)
        operation = await self._channel.call(self._channel.quantization.Calibrate, request)
        self.artifact = convert.to_artifact(await self._channel.follow(operation, self._progress))
        self.report_metrics = convert.calibration_metrics(self.artifact)
        return self.artifact

    async def load_quantized(self, model_path: str, config: Optional[QuantConfig] = None, *, engine_id: Optional[str] = None,
                             **options: Any) -> AsyncRuntime:
        request = convert.start_request(str(model_path), config or self.config, engine_id, options)
        engine = await self._channel.call(self._channel.engines.StartEngine, request, unbounded=True)
        runtime = AsyncRuntime(self._channel, engine)
        self.kernel = runtime.kernel
        self.report_metrics.update(load_ms=runtime.load_ms)
        return runtime

    async def select_kernel(self, config: Optional[QuantConfig] = None) -> str:
        return (await self.explain_kernel(config=config)).name

    async def explain_kernel(self, inputs: int = 0, outputs: int = 0, kernel: Optional[str] = None,
                             config: Optional[QuantConfig] = None) -> Kernel:
        request = kernel_request(config or self.config, inputs, outputs, kernel)
        return convert.to_kernel(await self._channel.call(self._channel.quantization.SelectKernel, request))

    async def get_available_backends(self) -> List[str]:
        request = quantization_pb2.ListCapabilitiesRequest()
        answer = await self._channel.call(self._channel.quantization.ListCapabilities, request)
        return [backend.name for backend in answer.backends if backend.available]

    def report(self) -> Dict[str, float]:
        return dict(self.report_metrics)

    async def evaluate(self, dataset_path: str, artifact: Optional[str] = None, *, reference: Optional[str] = None,
                       windows: int = 0, window: int = 0, tasks: Optional[Mapping[str, str]] = None,
                       speed: bool = True) -> Dict[str, Any]:
        name = artifact or self.artifact
        if not name:
            raise UnsupportedError("evaluate: no artifact was named, and none was calibrated", "NO_ARTIFACT")
        request = convert.evaluate_request(str(name), dataset_path, reference, windows, window, tasks, speed)
        operation = await self._channel.call(self._channel.reports.Evaluate, request)
        report: Dict[str, Any] = json.loads((await self._channel.follow(operation, self._progress)).result_json)
        self.report_metrics.update(convert.flatten(report))
        return report

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> "AsyncQuantizationManager":
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self.close()


class AsyncUnifiedInferenceClient:
    """UnifiedInferenceClient with coroutines."""

    def __init__(self, connection: Connection, default_llm_model: str = "") -> None:
        self._channel = AsyncChannel(connection)
        self._engine = default_llm_model

    @classmethod
    def create(cls, control_plane_url: Optional[str] = None, default_llm_model: str = "", *, server: Optional[str] = None,
               **connection: Any) -> "AsyncUnifiedInferenceClient":
        return cls(Connection(server=server or control_plane_url, **connection), default_llm_model)

    async def chat(self, messages: Iterable[Mapping[str, Any]], runtime: Optional[Union[AsyncRuntime, str]] = None, *,
                   tools: Optional[Sequence[Mapping[str, Any]]] = None, template_args: Optional[Mapping[str, Any]] = None,
                   **options: Any) -> Completion:
        request = convert.chat_request(self._name(runtime), messages, tools, template_args, options)
        return await self._gather(self._channel.generation.Chat, request, chat=True)

    async def stream_chat(self, messages: Iterable[Mapping[str, Any]], runtime: Optional[Union[AsyncRuntime, str]] = None, *,
                          tools: Optional[Sequence[Mapping[str, Any]]] = None,
                          template_args: Optional[Mapping[str, Any]] = None, **options: Any) -> AsyncIterator[Update]:
        request = convert.chat_request(self._name(runtime), messages, tools, template_args, options)
        async for message in self._channel.stream(self._channel.generation.Chat, request):
            yield Update(message)

    async def generate(self, prompt: Union[str, Sequence[int]], runtime: Optional[Union[AsyncRuntime, str]] = None,
                       **options: Any) -> Completion:
        request = convert.generate_request(self._name(runtime), prompt, options)
        return await self._gather(self._channel.generation.Generate, request)

    async def stream_generate(self, prompt: Union[str, Sequence[int]], runtime: Optional[Union[AsyncRuntime, str]] = None,
                              **options: Any) -> AsyncIterator[Update]:
        request = convert.generate_request(self._name(runtime), prompt, options)
        async for message in self._channel.stream(self._channel.generation.Generate, request):
            yield Update(message)

    async def tokenize(self, text: str, runtime: Optional[Union[AsyncRuntime, str]] = None, *,
                       add_special: bool = True) -> List[int]:
        request = generation_pb2.TokenizeRequest(engine_id=self._name(runtime), text=text, no_special=not add_special)
        return list((await self._channel.call(self._channel.generation.Tokenize, request)).ids)

    async def models(self) -> List[Dict[str, Any]]:
        answer = await self._channel.call(self._channel.engines.ListEngines, engine_pb2.ListEnginesRequest(page_size=1000))
        return [convert.engine_record(e) for e in answer.engines]

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> "AsyncUnifiedInferenceClient":
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self.close()

    def _name(self, runtime: Optional[Union[AsyncRuntime, str]]) -> str:
        return convert.engine_name(runtime, self._engine)

    async def _gather(self, method: Any, request: Any, chat: bool = False) -> Completion:
        convert.ask_for_whole_answer(request)
        gather = convert.Gather(request, chat)
        async for message in self._channel.stream(method, request):
            gather.add(message)
        return gather.done()
