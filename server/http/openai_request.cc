// Reads /v1/completions and /v1/chat/completions bodies.
#include "server/http/openai_request.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/convert.h"
#include "server/convert_status.h"

namespace sage::server {
namespace {

constexpr size_t kMaxPrompts = 128;

bool Has(const OrderedJson& json, const char* key) { return json.contains(key) && !json[key].is_null(); }

absl::Status ReadDouble(const OrderedJson& json, const char* key, double* out) {
  if (!Has(json, key)) return absl::OkStatus();
  if (!json[key].is_number()) return BadField(key, "WRONG_TYPE", "must be a number");
  *out = json[key].get<double>();
  return absl::OkStatus();
}

template <typename Int>
absl::Status ReadInt(const OrderedJson& json, const char* key, Int* out) {
  if (!Has(json, key)) return absl::OkStatus();
  const OrderedJson& value = json[key];
  const bool whole =
      value.is_number_integer() || (value.is_number_float() && std::floor(value.get<double>()) == value.get<double>());
  if (!whole) return BadField(key, "WRONG_TYPE", "must be a whole number");
  // Past 2^53 a double is no longer the number that was meant.
  const bool exact = value.is_number_float() ? std::abs(value.get<double>()) < 9e15
                                             : !value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX;
  const int64_t number = !exact                      ? 0
                         : value.is_number_integer() ? value.get<int64_t>()
                                                     : static_cast<int64_t>(value.get<double>());
  constexpr auto kLeast = static_cast<int64_t>(std::numeric_limits<Int>::min());
  constexpr auto kMost = static_cast<int64_t>(std::numeric_limits<Int>::max());
  if (!exact || number < kLeast || number > kMost) {
    return BadField(key, "OUT_OF_RANGE", absl::StrCat("must be from ", kLeast, " to ", kMost, ", got ", value.dump()));
  }
  *out = static_cast<Int>(number);
  return absl::OkStatus();
}

// Any 64 bits, signed or not: the seeds that answers tell use them all.
absl::Status ReadSeed(const OrderedJson& json, std::optional<uint64_t>* out) {
  if (!Has(json, "seed")) return absl::OkStatus();
  if (json["seed"].is_number_unsigned()) {
    *out = json["seed"].get<uint64_t>();
    return absl::OkStatus();
  }
  int64_t seed = 0;
  SAGE_RETURN_IF_ERROR(ReadInt(json, "seed", &seed));
  *out = static_cast<uint64_t>(seed);
  return absl::OkStatus();
}

absl::Status ReadBool(const OrderedJson& json, const char* key, bool* out) {
  if (!Has(json, key)) return absl::OkStatus();
  if (!json[key].is_boolean()) return BadField(key, "WRONG_TYPE", "must be true or false");
  *out = json[key].get<bool>();
  return absl::OkStatus();
}

absl::Status ReadStop(const OrderedJson& json, GenerateSpec* spec) {
  if (Has(json, "stop")) {
    const OrderedJson list = json["stop"].is_array() ? json["stop"] : OrderedJson::array({json["stop"]});
    for (const OrderedJson& item : list) {
      if (!item.is_string()) return BadField("stop", "WRONG_TYPE", "must be a text or a list of texts");
      spec->stop.push_back(item.get<std::string>());
    }
  }
  if (!Has(json, "stop_token_ids")) return absl::OkStatus();
  if (!json["stop_token_ids"].is_array()) return BadField("stop_token_ids", "WRONG_TYPE", "must be a list of ids");
  for (const OrderedJson& item : json["stop_token_ids"]) {
    if (!item.is_number_integer()) return BadField("stop_token_ids", "WRONG_TYPE", "must be a list of ids");
    spec->stop_ids.push_back(item.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::Status ReadLogitBias(const OrderedJson& json, GenerateSpec* spec) {
  if (!Has(json, "logit_bias")) return absl::OkStatus();
  if (!json["logit_bias"].is_object()) return BadField("logit_bias", "WRONG_TYPE", "must be an object of id: bias");
  for (const auto& [key, value] : json["logit_bias"].items()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || !value.is_number()) {
      return BadField("logit_bias", "WRONG_TYPE", "must be an object of id: bias");
    }
    spec->sampling.logit_bias[id] = value.get<float>();
  }
  return absl::OkStatus();
}

absl::Status ReadLogprobs(const OrderedJson& json, OpenAiRequest* out) {
  if (!out->chat) {  // a number of alternatives
    if (!Has(json, "logprobs") || json["logprobs"] == false) return absl::OkStatus();
    SAGE_RETURN_IF_ERROR(ReadInt(json, "logprobs", &out->spec.logprobs));
    out->logprobs = out->spec.logprobs >= 0;
    return absl::OkStatus();
  }
  SAGE_RETURN_IF_ERROR(ReadBool(json, "logprobs", &out->logprobs));
  if (!out->logprobs) return absl::OkStatus();
  out->spec.logprobs = 0;
  SAGE_RETURN_IF_ERROR(ReadInt(json, "top_logprobs", &out->spec.logprobs));
  if (const int told = out->spec.logprobs; told < 0 || told > 20) {  // by the name it has here
    return BadField("top_logprobs", "OUT_OF_RANGE", absl::StrCat("must be from 0 to 20, got ", told));
  }
  return absl::OkStatus();
}

absl::Status ReadPrompt(const OrderedJson& json, OpenAiRequest* out) {
  if (!Has(json, "prompt")) return BadField("prompt", "PROMPT_EMPTY", "a text, a list of texts or token ids is needed");
  const auto read_ids = [&](const OrderedJson& list) -> absl::Status {
    std::vector<int32_t> ids;
    for (const OrderedJson& item : list) {
      if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > INT32_MAX) {
        return BadField("prompt", "WRONG_TYPE", "token ids must be whole numbers from 0");
      }
      ids.push_back(item.get<int32_t>());
    }
    if (ids.empty()) return BadField("prompt", "PROMPT_EMPTY", "at least one token id is needed");
    out->ids.push_back(std::move(ids));
    return absl::OkStatus();
  };
  const OrderedJson& prompt = json["prompt"];
  if (prompt.is_string()) {
    out->texts.push_back(prompt.get<std::string>());
    return absl::OkStatus();
  }
  if (!prompt.is_array() || prompt.empty()) {
    return BadField("prompt", "WRONG_TYPE", "must be a text, a list of texts, token ids or a list of those");
  }
  if (prompt[0].is_number()) return read_ids(prompt);
  if (prompt.size() > kMaxPrompts) return BadField("prompt", "TOO_MANY", absl::StrCat("at most ", kMaxPrompts));
  for (const OrderedJson& item : prompt) {
    if (item.is_string() == prompt[0].is_string() && item.is_string()) {
      out->texts.push_back(item.get<std::string>());
    } else if (item.is_array() && prompt[0].is_array()) {
      SAGE_RETURN_IF_ERROR(read_ids(item));
    } else {
      return BadField("prompt", "WRONG_TYPE", "all entries must be texts, or all lists of token ids");
    }
  }
  return absl::OkStatus();
}

// Message contents may be lists of parts; texts are joined, any other part is refused.
absl::Status FlattenContent(OrderedJson& message) {
  if (!message.contains("content") || !message["content"].is_array()) return absl::OkStatus();
  std::string text;
  for (const OrderedJson& part : message["content"]) {
    if (!part.is_object() || part.value("type", "") != "text" || !part.contains("text") || !part["text"].is_string()) {
      return BadField("messages", "UNSUPPORTED", "only parts of type \"text\" are supported");
    }
    text += part["text"].get<std::string>();
  }
  message["content"] = text;
  return absl::OkStatus();
}

absl::Status ReadChat(const OrderedJson& json, OpenAiRequest* out) {
  OrderedJson context = OrderedJson::object();
  if (Has(json, "chat_template_kwargs")) {
    if (!json["chat_template_kwargs"].is_object()) {
      return BadField("chat_template_kwargs", "WRONG_TYPE", "must be an object");
    }
    context = json["chat_template_kwargs"];
  }
  if (!Has(json, "messages") || !json["messages"].is_array() || json["messages"].empty()) {
    return BadField("messages", "EMPTY", "a list of at least one message is needed");
  }
  context["messages"] = json["messages"];
  for (OrderedJson& message : context["messages"]) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      return BadField("messages", "BAD_MESSAGE", "each message is an object with a \"role\" text");
    }
    SAGE_RETURN_IF_ERROR(FlattenContent(message));
  }
  if (Has(json, "tools") && json.value("tool_choice", OrderedJson("auto")) != "none") {
    if (!json["tools"].is_array()) return BadField("tools", "WRONG_TYPE", "must be a list");
    context["tools"] = json["tools"];
  }
  out->chat_context = std::move(context);
  return ReadBool(json, "add_generation_prompt", &out->add_generation_prompt);
}

// Templates hear of tools, and nobody makes the model call one: a promise of a call is refused.
absl::Status CheckToolChoice(const OrderedJson& json) {
  if (!Has(json, "tool_choice")) return absl::OkStatus();
  const OrderedJson& choice = json["tool_choice"];
  if (choice == "auto" || choice == "none") return absl::OkStatus();
  return BadField(
      "tool_choice", "UNSUPPORTED",
      absl::StrCat("must be \"auto\" or \"none\": a call cannot be forced, got ", choice.dump().substr(0, 80)));
}

absl::Status RefuseUnsupported(const OrderedJson& json, bool chat) {
  for (const char* key : {"suffix", "functions", "function_call", "modalities", "audio"}) {
    if (Has(json, key)) return BadField(key, "UNSUPPORTED", "is not supported");
  }
  if (Has(json, "response_format") && json["response_format"].is_object() &&
      json["response_format"].value("type", "text") != "text") {
    return BadField("response_format", "UNSUPPORTED", "only type \"text\" is supported");
  }
  SAGE_RETURN_IF_ERROR(CheckToolChoice(json));
  // Nothing is generated and then thrown away: as many as are asked for, or refused.
  const OrderedJson n = Has(json, "n") ? json["n"] : OrderedJson(1);
  if (!chat && Has(json, "best_of") && json["best_of"] != n) {
    return BadField("best_of", "UNSUPPORTED", absl::StrCat("must equal n, which is ", n.dump()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(const std::string& body, bool chat) {
  JsonLimits limits;
  limits.max_bytes = 64 << 20;
  absl::StatusOr<OrderedJson> parsed = ParseOrderedJson(body, "body", limits);
  if (!parsed.ok()) return BadField("body", "BAD_JSON", std::string(parsed.status().message()));
  const OrderedJson& json = *parsed;
  if (!json.is_object()) return BadField("body", "BAD_JSON", "must be an object");
  OpenAiRequest out;
  out.chat = chat;
  GenerateSpec& spec = out.spec;
  if (!chat) spec.max_tokens = 16;  // the API's own default
  if (Has(json, "model") && !json["model"].is_string()) return BadField("model", "WRONG_TYPE", "must be a text");
  if (Has(json, "model")) out.model = json["model"].get<std::string>();
  SAGE_RETURN_IF_ERROR(RefuseUnsupported(json, chat));
  SAGE_RETURN_IF_ERROR(ReadInt(json, "max_tokens", &spec.max_tokens));
  SAGE_RETURN_IF_ERROR(ReadInt(json, "max_completion_tokens", &spec.max_tokens));
  SAGE_RETURN_IF_ERROR(ReadDouble(json, "temperature", &spec.sampling.temperature));
  SAGE_RETURN_IF_ERROR(ReadDouble(json, "top_p", &spec.sampling.top_p));
  SAGE_RETURN_IF_ERROR(ReadDouble(json, "min_p", &spec.sampling.min_p));
  SAGE_RETURN_IF_ERROR(ReadInt(json, "top_k", &spec.sampling.top_k));
  if (spec.sampling.top_k == -1) spec.sampling.top_k = 0;  // other servers' word for off
  SAGE_RETURN_IF_ERROR(ReadDouble(json, "repetition_penalty", &spec.sampling.repetition_penalty));
  SAGE_RETURN_IF_ERROR(ReadDouble(json, "presence_penalty", &spec.sampling.presence_penalty));
  SAGE_RETURN_IF_ERROR(ReadDouble(json, "frequency_penalty", &spec.sampling.frequency_penalty));
  SAGE_RETURN_IF_ERROR(ReadSeed(json, &spec.sampling.seed));
  SAGE_RETURN_IF_ERROR(ReadInt(json, "n", &spec.n));
  SAGE_RETURN_IF_ERROR(ReadBool(json, "ignore_eos", &spec.ignore_eos));
  SAGE_RETURN_IF_ERROR(ReadBool(json, "stream", &out.stream));
  SAGE_RETURN_IF_ERROR(ReadBool(json, "echo", &out.echo));
  if (out.echo && chat) return BadField("echo", "UNSUPPORTED", "only /v1/completions repeats its prompt");
  if (Has(json, "stream_options") && json["stream_options"].is_object()) {
    SAGE_RETURN_IF_ERROR(ReadBool(json["stream_options"], "include_usage", &out.include_usage));
  }
  SAGE_RETURN_IF_ERROR(ReadStop(json, &spec));
  SAGE_RETURN_IF_ERROR(ReadLogitBias(json, &spec));
  SAGE_RETURN_IF_ERROR(ReadLogprobs(json, &out));
  SAGE_RETURN_IF_ERROR(chat ? ReadChat(json, &out) : ReadPrompt(json, &out));
  SAGE_RETURN_IF_ERROR(CheckGenerateSpec(spec));
  return out;
}

}  // namespace sage::server
