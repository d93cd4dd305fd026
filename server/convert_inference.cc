// Tensors and parameters of the Open Inference Protocol. Raw BYTES elements are a 4-byte little-endian length and the
// bytes.
#include "server/convert_inference.h"

#include <cmath>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "server/convert.h"
#include "server/convert_status.h"

namespace sage::server {
namespace {

using inference::ModelInferRequest;
constexpr int64_t kMaxIds = 1 << 24;

// The bytes of input `index` when they are in raw_input_contents, else null.
absl::StatusOr<const std::string*> RawOf(const ModelInferRequest& request, int index) {
  if (request.raw_input_contents_size() == 0) return nullptr;
  if (request.raw_input_contents_size() != request.inputs_size()) {
    return BadField("raw_input_contents", "BAD_INPUT",
                    absl::StrCat("one entry an input is needed, got ", request.raw_input_contents_size(), " for ",
                                 request.inputs_size()));
  }
  return &request.raw_input_contents(index);
}

absl::Status CheckType(const ModelInferRequest::InferInputTensor& input, const char* type) {
  if (input.datatype() == type) return absl::OkStatus();
  return BadField(input.name(), "BAD_INPUT",
                  absl::StrCat("datatype must be ", type, ", got \"", input.datatype(), "\""));
}

absl::StatusOr<std::string> ReadText(const ModelInferRequest& request, int index) {
  const auto& input = request.inputs(index);
  SAGE_RETURN_IF_ERROR(CheckType(input, "BYTES"));
  SAGE_ASSIGN_OR_RETURN(const std::string* raw, RawOf(request, index));
  if (raw == nullptr && input.contents().bytes_contents_size() == 1) return input.contents().bytes_contents(0);
  uint32_t size = 0;
  if (raw != nullptr && raw->size() >= 4) {
    std::memcpy(&size, raw->data(), 4);
    if (size == raw->size() - 4) return raw->substr(4);
  }
  return BadField(input.name(), "BAD_INPUT", "must hold one element");
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const ModelInferRequest& request, int index) {
  const auto& input = request.inputs(index);
  SAGE_RETURN_IF_ERROR(CheckType(input, "INT32"));
  SAGE_ASSIGN_OR_RETURN(const std::string* raw, RawOf(request, index));
  std::vector<int32_t> ids(input.contents().int_contents().begin(), input.contents().int_contents().end());
  if (raw != nullptr) {
    if (raw->size() % 4 != 0) return BadField(input.name(), "BAD_INPUT", "raw bytes must be a multiple of 4");
    ids.resize(raw->size() / 4);
    if (!ids.empty()) std::memcpy(ids.data(), raw->data(), raw->size());
  }
  if (ids.empty() || static_cast<int64_t>(ids.size()) > kMaxIds) {
    return BadField(input.name(), "BAD_INPUT", absl::StrCat("1 to ", kMaxIds, " ids are needed, got ", ids.size()));
  }
  return ids;
}

absl::StatusOr<bool> ReadFlag(const ModelInferRequest& request, int index) {
  const auto& input = request.inputs(index);
  SAGE_RETURN_IF_ERROR(CheckType(input, "BOOL"));
  SAGE_ASSIGN_OR_RETURN(const std::string* raw, RawOf(request, index));
  if (raw == nullptr && input.contents().bool_contents_size() == 1) return input.contents().bool_contents(0);
  if (raw != nullptr && raw->size() == 1) return (*raw)[0] != 0;
  return BadField(input.name(), "BAD_INPUT", "must hold one element");
}

absl::StatusOr<double> Number(const std::string& name, const inference::InferParameter& value) {
  using P = inference::InferParameter;
  double out = 0;
  switch (value.parameter_choice_case()) {
    case P::kInt64Param:
      out = static_cast<double>(value.int64_param());
      break;
    case P::kUint64Param:
      out = static_cast<double>(value.uint64_param());
      break;
    case P::kDoubleParam:
      out = value.double_param();
      break;
    case P::kBoolParam:
      out = value.bool_param() ? 1.0 : 0.0;
      break;
    default:
      return BadField(name, "BAD_PARAMETER", "must be a number");
  }
  if (!(out >= -1e15 && out <= 1e15)) return BadField(name, "OUT_OF_RANGE", "out of range");
  return out;
}

// 2^30 and more would not fit; CheckGenerateSpec says the ranges.
int32_t ToInt(double number) { return static_cast<int32_t>(std::min(std::max(number, -1.0), 2e9)); }

absl::Status ReadParameters(const ModelInferRequest& request, GenerateSpec* spec) {
  const std::map<std::string, double*> reals = {{"temperature", &spec->sampling.temperature},
                                                {"top_p", &spec->sampling.top_p},
                                                {"min_p", &spec->sampling.min_p},
                                                {"repetition_penalty", &spec->sampling.repetition_penalty},
                                                {"presence_penalty", &spec->sampling.presence_penalty},
                                                {"frequency_penalty", &spec->sampling.frequency_penalty}};
  for (const auto& [name, value] : request.parameters()) {
    if (name == "stop") {
      if (!value.has_string_param()) return BadField(name, "BAD_PARAMETER", "must be a text");
      spec->stop.push_back(value.string_param());
      continue;
    }
    if (name == "triton_enable_empty_final_response") continue;  // the last answer is never empty of meaning here
    SAGE_ASSIGN_OR_RETURN(const double number, Number(name, value));
    if (const auto it = reals.find(name); it != reals.end()) {
      *it->second = number;
    } else if (name == "max_tokens") {
      spec->max_tokens = static_cast<int64_t>(number);
    } else if (name == "top_k") {
      spec->sampling.top_k = ToInt(number);
    } else if (name == "seed") {
      spec->sampling.seed = static_cast<uint64_t>(number < 0 ? 0 : number);
    } else if (name == "ignore_eos") {
      spec->ignore_eos = number != 0;
    } else if (name == "timeout") {
      if (number > 0) spec->deadline = absl::Now() + absl::Microseconds(number);
    } else {
      return BadField(name, "UNKNOWN_PARAMETER",
                      "known: max_tokens, temperature, top_k, top_p, min_p, seed, repetition_penalty, "
                      "presence_penalty, frequency_penalty, ignore_eos, stop, timeout");
    }
  }
  return CheckGenerateSpec(*spec);
}

absl::Status ReadOutputs(const ModelInferRequest& request, InferenceInput* out) {
  if (request.outputs_size() == 0) return absl::OkStatus();
  out->wants_text = out->wants_ids = out->wants_reason = false;
  for (const auto& output : request.outputs()) {
    if (output.name() == "text_output") {
      out->wants_text = true;
    } else if (output.name() == "output_ids") {
      out->wants_ids = true;
    } else if (output.name() == "finish_reason") {
      out->wants_reason = true;
    } else {
      return BadField("outputs", "UNKNOWN_OUTPUT",
                      absl::StrCat("known: text_output, output_ids, finish_reason; got \"", output.name(), "\""));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModelVersion(const char* field, const std::string& version) {
  if (version.empty() || version == "1") return absl::OkStatus();
  return BadField(field, "UNKNOWN_VERSION", absl::StrCat("must be 1, got ", version.substr(0, 80)));
}

absl::Status CheckInferenceModel(const ModelInferRequest& request) {
  SAGE_RETURN_IF_ERROR(CheckModelVersion("model_version", request.model_version()));
  if (request.id().size() > 256) return BadField("id", "TOO_LONG", "at most 256 bytes");
  if (request.model_name().empty()) return BadField("model_name", "EMPTY", "must be named");
  return absl::OkStatus();
}

absl::StatusOr<InferenceInput> ToInferenceInput(const ModelInferRequest& request, bool may_stream) {
  SAGE_RETURN_IF_ERROR(CheckInferenceModel(request));
  InferenceInput out;
  out.model = request.model_name();
  out.id = request.id();
  out.raw = request.raw_input_contents_size() > 0;
  out.streaming = may_stream;
  SAGE_RETURN_IF_ERROR(ReadParameters(request, &out.spec));
  SAGE_RETURN_IF_ERROR(ReadOutputs(request, &out));
  for (int i = 0; i < request.inputs_size(); ++i) {
    const std::string& name = request.inputs(i).name();
    const bool prompt = name == "text_input" || name == "input_ids";
    if (prompt && (out.text || !out.spec.prompt_ids.empty())) {
      return BadField("inputs", "BAD_INPUT", "text_input or input_ids, once");
    }
    if (name == "text_input") {
      SAGE_ASSIGN_OR_RETURN(out.text, ReadText(request, i));
    } else if (name == "input_ids") {
      SAGE_ASSIGN_OR_RETURN(out.spec.prompt_ids, ReadIds(request, i));
    } else if (name == "streaming" || name == "stream") {
      SAGE_ASSIGN_OR_RETURN(out.streaming, ReadFlag(request, i));
    } else {
      return BadField("inputs", "BAD_INPUT",
                      absl::StrCat("known: text_input, input_ids, streaming; got \"", name, "\""));
    }
  }
  if (!out.text && out.spec.prompt_ids.empty()) {
    return BadField("inputs", "BAD_INPUT", "a BYTES tensor text_input of one element, or INT32 input_ids, is needed");
  }
  if (out.streaming && !may_stream) {
    return BadField("streaming", "STREAM_NEEDED", "ModelInfer answers once; use ModelStreamInfer");
  }
  return out;
}

}  // namespace sage::server
