"""Between the package's types and the wire, without any call: used by the synchronous and the asynchronous client."""
from __future__ import annotations

import json
import os
import uuid
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from sagequant._wire import engine_pb2, generation_pb2, quantization_pb2, report_pb2
from sagequant.config import Artifact, CalibrationRecord, KernelBinding, KVQuantPlan, Kernel, QuantConfig
from sagequant.errors import InvalidArgumentError, SageError, from_status

_MAX_DATASET = 48 << 20
_WHOLE_ANSWER = 1 << 24  # the most that stream_interval may be
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
_OPTIONS = ("max_tokens", "ignore_eos", "logprobs", "n", "keep_special", "no_add_special",
            "stream_interval")


def dataset_fields(path: Optional[str]) -> Tuple[str, bytes]:
    """A local file travels with the request; any other name is the daemon's to resolve."""
    if not path or not os.path.isfile(path):
        return path or "", b""
    if os.path.getsize(path) > _MAX_DATASET:
        raise InvalidArgumentError(f"dataset: {path} has {os.path.getsize(path)} bytes, at most {_MAX_DATASET} can travel with "
                                   "the request; put it under a root of the daemon", "DATASET_TOO_LARGE")
    with open(path, "rb") as file:
        return os.path.basename(path), file.read()


def calibrate_request(config: QuantConfig, model: str, dataset: Optional[str], output: Optional[str], samples: int,
                      sequence_length: int, seed: int, file_format: Optional[str]) -> quantization_pb2.CalibrateRequest:
    name, content = dataset_fields(dataset)
    return quantization_pb2.CalibrateRequest(
        request_id=str(uuid.uuid4()), model=model, dataset=name, dataset_content=content, config=config.to_wire(),
        samples=samples, sequence_length=sequence_length, seed=seed, format=file_format or "", output=output or "")


def to_artifact(operation: Any) -> Artifact:
    result = quantization_pb2.CalibrateResult()
    operation.result.Unpack(result)
    artifact = Artifact(result.artifact)
    artifact.operation = operation.id
    artifact.file_format = result.format
    for field in ("path", "quantization", "weight_bytes", "source_bytes", "bits_per_weight", "seconds"):
        setattr(artifact, field, getattr(result, field))
    artifact.layers = tuple(CalibrationRecord(r.name, r.scheme, r.error, r.sha256, r.bytes) for r in result.layers)
    return artifact


def calibration_metrics(artifact: Artifact) -> Dict[str, float]:
    errors = [layer.error for layer in artifact.layers]
    return {"weight_bytes": float(artifact.weight_bytes), "source_bytes": float(artifact.source_bytes),
            "bits_per_weight": artifact.bits_per_weight, "calibration_seconds": artifact.seconds,
            "layers": float(len(errors)), "max_layer_error": max(errors, default=0.0),
            "mean_layer_error": sum(errors) / len(errors) if errors else 0.0,
            "compression": artifact.source_bytes / artifact.weight_bytes if artifact.weight_bytes else 0.0}


def start_request(model: str, config: Optional[QuantConfig], engine_id: Optional[str],
                  options: Mapping[str, Any]) -> engine_pb2.StartEngineRequest:
    known = set(engine_pb2.StartEngineRequest.DESCRIPTOR.fields_by_name)
    for name in options:
        if name not in known:
            raise InvalidArgumentError(f"{name}: is no option of an engine; there is {', '.join(sorted(known))}", "UNKNOWN_OPTION")
    fields = {"model": model, "engine_id": engine_id or "", "request_id": str(uuid.uuid4())}
    if config is not None:
        config.check()
        fields["kv_quant"] = "" if config.kv_cache_dtype == "none" else config.kv_cache_dtype
        fields["backend"] = "" if config.backend == "auto" else config.backend
        fields["draft_mode"] = "ngram" if config.draft_mode else ""
    return engine_pb2.StartEngineRequest(**{**fields, **options})


def ended(operation: Any) -> bool:
    return int(operation.state) in (3, 4, 5)  # SUCCEEDED, FAILED, CANCELLED


def check_operation(operation: Any) -> Any:
    if int(operation.state) == 3:
        return operation
    error = from_status(operation.error)
    error.metadata.setdefault("operation", operation.id)
    raise error


def evaluate_request(artifact: str, dataset: str, reference: Optional[str], windows: int, window: int,
                     tasks: Optional[Mapping[str, str]], speed: bool) -> report_pb2.EvaluateRequest:
    name, content = dataset_fields(dataset)
    return report_pb2.EvaluateRequest(request_id=str(uuid.uuid4()), artifact=artifact, reference=reference or "", dataset=name,
                                      dataset_content=content, windows=windows, window=window, tasks=dict(tasks or {}),
                                      no_speed=not speed)


def flatten(report: Mapping[str, Any], prefix: str = "") -> Dict[str, float]:
    """The numbers of a report under dotted names: perplexity.ratio, kl.mean, memory.weight_bytes, ..."""
    out: Dict[str, float] = {}
    for key, value in report.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[prefix + key] = float(value)
    return out


def to_kernel(answer: Any) -> Kernel:
    return Kernel(answer.kernel, answer.strategy, answer.backend, answer.capability,
                  tuple((r.kernel, r.reason) for r in answer.refused))


def bindings_of(engine: Any) -> Tuple[KernelBinding, ...]:
    return tuple(KernelBinding(b.layer, b.strategy, b.kernel, b.weight_bytes) for b in engine.bindings)


def kv_plan_of(engine: Any) -> KVQuantPlan:
    plan = engine.kv_plan
    return KVQuantPlan(plan.dtype, plan.block_size, plan.group_size, plan.scale_precision)


def main_kernel(bindings: Sequence[KernelBinding]) -> str:
    """The kernel that runs most of the weights."""
    sizes: Dict[str, int] = {}
    for binding in bindings:
        sizes[binding.kernel] = sizes.get(binding.kernel, 0) + binding.weight_bytes
    return max(sorted(sizes), key=lambda kernel: sizes[kernel], default="")


def _set_option(out: generation_pb2.GenerationOptions, name: str, value: Any) -> None:
    if name in _SAMPLING:
        setattr(out.sampling, name, value)
    elif name in _OPTIONS:
        setattr(out, name, value)
    elif name == "stop":
        out.stop.extend([value] if isinstance(value, str) else value)
    elif name == "stop_ids":
        out.stop_ids.extend(value)
    elif name == "logit_bias":
        for token, bias in value.items():
            out.sampling.logit_bias[int(token)] = bias
    else:
        known = ", ".join(sorted((*_SAMPLING, *_OPTIONS, "stop", "stop_ids", "logit_bias")))
        raise InvalidArgumentError(f"{name}: is no option of a generation; there is {known}", "UNKNOWN_OPTION")


def generation_options(options: Mapping[str, Any]) -> generation_pb2.GenerationOptions:
    out = generation_pb2.GenerationOptions()
    for name, value in options.items():
        if value is None:
            continue
        try:
            _set_option(out, "max_tokens" if name == "max_completion_tokens" else name, value)
        except InvalidArgumentError:  # which is a ValueError too
            raise
        except (TypeError, ValueError, AttributeError):  # protobuf's own text names neither the option nor the value
            raise InvalidArgumentError(f"{name}: has no value of its kind, got {value!r}", "WRONG_TYPE") from None
    return out


def engine_name(runtime: Any, default: str) -> str:
    """`runtime` is a Runtime, an engine id, or None for the default."""
    name = getattr(runtime, "engine_id", runtime)
    if name is not None and not isinstance(name, str):
        raise InvalidArgumentError(f"runtime: must be what load_quantized gave or an engine id, got {runtime!r}", "WRONG_TYPE")
    return name or default


def put_prompt(request: Any, field: str, prompt: Union[str, Sequence[int]]) -> None:
    """A text, or token ids; `field` is how the caller names it."""
    if isinstance(prompt, str):
        request.text = prompt
        return
    try:
        request.token_ids.ids.extend(prompt)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{field}: must be a text or a sequence of token ids, got {type(prompt).__name__}",
                                   "WRONG_TYPE") from None


def generate_request(engine: str, prompt: Union[str, Sequence[int]],
                     options: Mapping[str, Any]) -> generation_pb2.GenerateRequest:
    request = generation_pb2.GenerateRequest(engine_id=engine, options=generation_options(options))
    put_prompt(request, "prompt", prompt)
    return request


def chat_request(engine: str, messages: Iterable[Mapping[str, Any]], tools: Optional[Sequence[Mapping[str, Any]]],
                 template_args: Optional[Mapping[str, Any]], options: Mapping[str, Any]) -> generation_pb2.ChatRequest:
    conversation = generation_pb2.Conversation(messages_json=json.dumps(list(messages)),
                                               tools_json=json.dumps(list(tools)) if tools else "",
                                               template_args_json=json.dumps(dict(template_args)) if template_args else "")
    return generation_pb2.ChatRequest(engine_id=engine, conversation=conversation, options=generation_options(options))


class Update:
    """One step of one choice: what is new."""

    __slots__ = ("index", "text", "token_ids", "finish_reason", "seed", "last")

    def __init__(self, message: Any) -> None:
        self.index: int = message.index
        self.text: str = message.text
        self.token_ids: List[int] = [t.id for t in message.tokens]
        self.finish_reason: str = message.finish_reason
        self.seed: int = message.seed
        self.last: bool = message.last

    def __repr__(self) -> str:
        return f"Update(index={self.index}, text={self.text!r}, finish_reason={self.finish_reason!r})"


class Completion(Dict[str, Any]):
    """A whole answer: a dict of the OpenAI shape, with the first choice's text and ids as attributes."""

    @property
    def text(self) -> str:
        choice = self["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])

    @property
    def token_ids(self) -> List[int]:
        return list(self["choices"][0]["token_ids"])

    @property
    def usage(self) -> Dict[str, int]:
        return dict(self["usage"])

    def __str__(self) -> str:
        return self.text


def ask_for_whole_answer(request: Any) -> None:
    """One message instead of one a token, unless the caller chose an interval: nothing is shown before the end."""
    if not request.options.HasField("stream_interval"):
        request.options.stream_interval = _WHOLE_ANSWER


class Gather:
    """Collects the updates of one call into a Completion."""

    def __init__(self, request: Any, chat: bool) -> None:
        self._chat, self._logprobs, self._engine = chat, request.options.HasField("logprobs"), request.engine_id
        self._choices: Dict[int, Dict[str, Any]] = {}
        self._last: Optional[Any] = None

    def add(self, message: Any) -> None:
        choice = self._choices.setdefault(message.index, {"text": "", "ids": [], "logprobs": [], "finish": "", "seed": 0})
        choice["text"] += message.text
        choice["ids"] += [t.id for t in message.tokens]
        choice["seed"] = message.seed or choice["seed"]
        if self._logprobs:
            choice["logprobs"] += [{"token": t.token, "id": t.id, "logprob": t.logprob,
                                    "top_logprobs": [{"token": a.token, "id": a.id, "logprob": a.logprob} for a in t.top]}
                                   for t in message.tokens]
        choice["finish"] = message.finish_reason or choice["finish"]
        if message.last:
            self._last = message

    def done(self) -> Completion:
        if self._last is None:
            raise SageError("the stream ended before its last update", "STREAM_CUT")
        usage, timings = self._last.usage, self._last.timings
        rows = []
        for index in sorted(self._choices):
            choice = self._choices[index]
            row: Dict[str, Any] = {"index": index, "finish_reason": choice["finish"], "token_ids": choice["ids"],
                                   "seed": choice["seed"],
                                   "logprobs": {"content": choice["logprobs"]} if self._logprobs else None}
            if self._chat:
                row["message"] = {"role": "assistant", "content": choice["text"]}
            else:
                row["text"] = choice["text"]
            rows.append(row)
        return Completion({
            "object": "chat.completion" if self._chat else "text_completion", "model": self._engine, "choices": rows,
            "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
                      "total_tokens": usage.prompt_tokens + usage.completion_tokens, "cached_tokens": usage.cached_tokens},
            "timings": {"queue_ms": timings.queue_ms, "prefill_ms": timings.prefill_ms, "decode_ms": timings.decode_ms,
                        "first_token_ms": timings.first_token_ms}})


def engine_record(engine: Any) -> Dict[str, Any]:
    """An engine as the command line shows it."""
    state = engine_pb2.EngineState.Name(engine.state)[len("ENGINE_STATE_"):]
    return {"engine_id": engine.engine_id, "state": state, "model": engine.model, "quantization": engine.quantization,
            "kv_quant": engine.kv_quant, "backend": engine.backend, "weight_bytes": engine.weight_bytes,
            "kv_bytes": engine.kv_bytes, "load_ms": engine.load_ms, "max_model_len": engine.max_model_len,
            "running": engine.load.running, "waiting": engine.load.waiting}
