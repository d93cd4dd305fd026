// Reads the fields one by one; what is left over is refused by name.
#include "server/start_request.h"

#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/convert_status.h"
#include "server/model_paths.h"

namespace sage::server {
namespace {

using Request = quant::v1::StartEngineRequest;

bool Empty(const Json& value) {
  return value.is_null() || ((value.is_array() || value.is_object() || value.is_string()) && value.empty());
}

absl::Status ReadTexts(const Json& json, Request* out) {
  static const std::pair<const char*, void (Request::*)(std::string &&)> kTexts[] = {
      {"model_id", &Request::set_model},
      {"model", &Request::set_model},
      {"engine_id", &Request::set_engine_id},
      {"engine_kind", &Request::set_engine_kind},
      {"quantization", &Request::set_quantization},
      {"attn_quantization", &Request::set_attn_quantization},
      {"mlp_quantization", &Request::set_mlp_quantization},
      {"head_quantization", &Request::set_head_quantization},
      {"kv_quant", &Request::set_kv_quant},
      {"backend", &Request::set_backend},
      {"draft_mode", &Request::set_draft_mode},
      {"request_id", &Request::set_request_id},
  };
  for (const auto& [key, set] : kTexts) {
    if (!json.contains(key) || json[key].is_null()) continue;
    if (!json[key].is_string()) return BadField(key, "WRONG_TYPE", "must be a text");
    (out->*set)(json[key].get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ReadNumbers(const Json& json, Request* out) {
  static const std::pair<const char*, void (Request::*)(int64_t)> kNumbers[] = {
      {"max_seqs", &Request::set_max_seqs},
      {"max_model_len", &Request::set_max_model_len},
      {"kv_memory_bytes", &Request::set_kv_memory_bytes},
      {"max_queue_requests", &Request::set_max_queue_requests},
      {"max_queue_tokens", &Request::set_max_queue_tokens},
      {"max_step_tokens", &Request::set_max_step_tokens},
      {"max_concurrent_requests", &Request::set_max_queue_requests},
      {"kv_sink_tokens", &Request::set_kv_sink_tokens},
  };
  for (const auto& [key, set] : kNumbers) {
    if (!json.contains(key) || json[key].is_null()) continue;
    if (!json[key].is_number_integer()) return BadField(key, "WRONG_TYPE", "must be a whole number");
    (out->*set)(json[key].get<int64_t>());
  }
  for (const char* key : {"tensor_parallel_size", "pipeline_parallel_size"}) {
    if (json.contains(key) && !json[key].is_null() && json[key] != 1) {
      return BadField(key, "UNSUPPORTED", absl::StrCat("must be 1, got ", json[key].dump()));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadLayers(const Json& json, Request* out) {
  const Json layers = json.value("layer_quantization", Json());
  if (layers.is_null()) return absl::OkStatus();
  const auto text = [](const Json& object, const char* key) { return object.contains(key) && object[key].is_string(); };
  for (const Json& entry : layers) {
    if (!layers.is_array() || !entry.is_object() || !text(entry, "pattern") || !text(entry, "quantization")) {
      return BadField("layer_quantization", "WRONG_TYPE",
                      "must be an array of {\"pattern\": ..., \"quantization\": ...}");
    }
    auto* const layer = out->add_layer_quantization();
    layer->set_pattern(entry["pattern"].get<std::string>());
    layer->set_quantization(entry["quantization"].get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ReadFlags(const Json& json, Request* out) {
  if (!json.contains("no_prefix_cache") || json["no_prefix_cache"].is_null()) return absl::OkStatus();
  if (!json["no_prefix_cache"].is_boolean()) return BadField("no_prefix_cache", "WRONG_TYPE", "must be true or false");
  out->set_no_prefix_cache(json["no_prefix_cache"].get<bool>());
  return absl::OkStatus();
}

// What the gateway says about a process of its own that it would start; here an engine lives in the daemon.
absl::Status ReadGatewayWords(const Json& json, const ListenAddress& own, Request* out) {
  const Json host = json.value("host", Json()), port = json.value("port", Json());
  // The gateway's body says "localhost" unless told otherwise.
  const std::set<std::string> here = {"localhost", "127.0.0.1", "::1", own.host};
  if (!host.is_null() && !(host.is_string() && here.count(host.get<std::string>()) > 0)) {
    return BadField(
        "host", "UNSUPPORTED",
        absl::StrCat("every engine answers at the daemon's own address; must be localhost or left out, got ",
                     host.dump()));
  }
  if (!port.is_null() && !(own.port > 0 && port == own.port)) {
    return BadField("port", "UNSUPPORTED", "every engine answers on the daemon's own ports; leave it out");
  }
  if (json.contains("extra_args") && !Empty(json["extra_args"])) {
    return BadField("extra_args", "UNSUPPORTED", "there is no process to pass arguments to; use the named fields");
  }
  if (const Json type = json.value("instance_type", Json()); !type.is_null()) {
    if (!type.is_string() || absl::AsciiStrToUpper(type.get<std::string>()) != "GENERAL") {
      return BadField("instance_type", "UNSUPPORTED", absl::StrCat("must be GENERAL, got ", type.dump()));
    }
  }
  if (const Json gb = json.value("required_memory_gb", Json()); !gb.is_null() && !(gb.is_number() && gb >= 0)) {
    return BadField("required_memory_gb", "WRONG_TYPE", "must be a number that is not negative");
  }
  if (const Json label = json.value("engine_label", Json()); !label.is_null()) {
    if (!label.is_string() || !IsPlainName(label.get<std::string>())) {
      return BadField("engine_label", "BAD_NAME", "1 to 128 of [A-Za-z0-9._-], not beginning with '.'");
    }
    if (out->engine_id().empty()) out->set_engine_id(label.get<std::string>());
  }
  const Json gpu = json.value("use_gpu", Json());
  if (gpu.is_null()) return absl::OkStatus();
  if (!gpu.is_boolean()) return BadField("use_gpu", "WRONG_TYPE", "must be true, false or null");
  const std::string backend = gpu.get<bool>() ? "cuda" : "cpu";
  if (!out->backend().empty() && out->backend() != "auto" && gpu.get<bool>() == (out->backend() == "cpu")) {
    return BadField("use_gpu", "CONTRADICTION", absl::StrCat("says ", backend, ", backend says ", out->backend()));
  }
  if (out->backend().empty() || out->backend() == "auto") out->set_backend(backend);
  return absl::OkStatus();
}

absl::Status RefuseUnknown(const Json& json) {
  static const std::set<std::string> kKnown = {"model_id",
                                               "model",
                                               "engine_id",
                                               "engine_kind",
                                               "quantization",
                                               "attn_quantization",
                                               "mlp_quantization",
                                               "head_quantization",
                                               "layer_quantization",
                                               "kv_quant",
                                               "backend",
                                               "draft_mode",
                                               "request_id",
                                               "max_seqs",
                                               "max_model_len",
                                               "kv_memory_bytes",
                                               "max_queue_requests",
                                               "max_queue_tokens",
                                               "max_step_tokens",
                                               "max_concurrent_requests",
                                               "kv_sink_tokens",
                                               "no_prefix_cache",
                                               "tensor_parallel_size",
                                               "pipeline_parallel_size",
                                               "host",
                                               "port",
                                               "extra_args",
                                               "instance_type",
                                               "required_memory_gb",
                                               "engine_label",
                                               "use_gpu",
                                               "metadata"};
  for (const auto& [key, value] : json.items()) {
    if (kKnown.count(key) > 0) continue;
    if (absl::StrContains(key, "finetune")) {
      if (Empty(value) || value == false) continue;
      return BadField(key, "UNSUPPORTED", "this daemon does not finetune");
    }
    return BadField(key, "UNKNOWN_FIELD", "is not known here");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Request> ParseStartRequest(const std::string& body, const ListenAddress& own) {
  absl::StatusOr<Json> parsed = ParseJson(body, "body");
  if (!parsed.ok()) return BadField("body", "BAD_JSON", std::string(parsed.status().message()));
  const Json& json = *parsed;
  if (!json.is_object()) return BadField("body", "BAD_JSON", "must be an object");
  Request out;
  SAGE_RETURN_IF_ERROR(ReadTexts(json, &out));
  SAGE_RETURN_IF_ERROR(ReadNumbers(json, &out));
  SAGE_RETURN_IF_ERROR(ReadLayers(json, &out));
  SAGE_RETURN_IF_ERROR(ReadFlags(json, &out));
  SAGE_RETURN_IF_ERROR(ReadGatewayWords(json, own, &out));
  SAGE_RETURN_IF_ERROR(RefuseUnknown(json));
  return out;
}

}  // namespace sage::server
