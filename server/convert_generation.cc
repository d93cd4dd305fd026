// Conversion and range checks of generation: options in, updates and scores out.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/unicode.h"
#include "sage/quant/v1/generation.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"

namespace sage::server {
namespace {

// Whole numbers in full: StrCat alone writes 16777216 as 1.67772e+07.
std::string Number(double value) {
  const bool whole = std::abs(value) < 1e15 && value == std::floor(value);
  return whole ? absl::StrCat(static_cast<int64_t>(value)) : absl::StrCat(value);
}

absl::Status Range(const char* field, double value, double low, double high) {
  if (std::isfinite(value) && value >= low && value <= high) return absl::OkStatus();
  return BadField(field, "OUT_OF_RANGE",
                  absl::StrCat("must be from ", Number(low), " to ", Number(high), ", got ", Number(value)));
}

void FillTop(const std::vector<TokenLogprob>& top, google::protobuf::RepeatedPtrField<pb::TokenAlternative>* out) {
  for (const TokenLogprob& alternative : top) {
    auto* row = out->Add();
    row->set_id(alternative.id);
    row->set_token(alternative.token);
    row->set_logprob(alternative.logprob);
  }
}

absl::StatusOr<OrderedJson> ParseField(const std::string& text, const char* field, OrderedJson::value_t type) {
  JsonLimits limits;
  limits.max_bytes = 32 << 20;
  absl::StatusOr<OrderedJson> json = ParseOrderedJson(text, field, limits);
  if (!json.ok()) return BadField(field, "BAD_JSON", std::string(json.status().message()));
  if (json->type() != type) {
    return BadField(field, "BAD_JSON", type == OrderedJson::value_t::array ? "must be an array" : "must be an object");
  }
  return json;
}

}  // namespace

absl::StatusOr<GenerateSpec> ToGenerateSpec(const pb::GenerationOptions& options) {
  GenerateSpec spec;
  const pb::SamplingOptions& sampling = options.sampling();
  SamplingSpec& s = spec.sampling;
  if (sampling.has_temperature()) s.temperature = sampling.temperature();
  if (sampling.has_top_k()) s.top_k = sampling.top_k();
  if (sampling.has_top_p()) s.top_p = sampling.top_p();
  if (sampling.has_min_p()) s.min_p = sampling.min_p();
  if (sampling.has_repetition_penalty()) s.repetition_penalty = sampling.repetition_penalty();
  if (sampling.has_presence_penalty()) s.presence_penalty = sampling.presence_penalty();
  if (sampling.has_frequency_penalty()) s.frequency_penalty = sampling.frequency_penalty();
  if (sampling.has_seed()) s.seed = sampling.seed();
  for (const auto& [id, bias] : sampling.logit_bias()) s.logit_bias[id] = bias;
  if (options.has_max_tokens()) spec.max_tokens = options.max_tokens();
  spec.stop.assign(options.stop().begin(), options.stop().end());
  spec.stop_ids.assign(options.stop_ids().begin(), options.stop_ids().end());
  spec.ignore_eos = options.ignore_eos();
  if (options.has_logprobs()) {
    SAGE_RETURN_IF_ERROR(Range("logprobs", options.logprobs(), 0, 20));
    spec.logprobs = options.logprobs();
  }
  if (options.has_n()) spec.n = options.n();
  spec.skip_special = !options.keep_special();
  SAGE_RETURN_IF_ERROR(CheckGenerateSpec(spec));
  return spec;
}

absl::StatusOr<int64_t> ToStreamInterval(const pb::GenerationOptions& options) {
  const int64_t interval = options.has_stream_interval() ? options.stream_interval() : 1;
  SAGE_RETURN_IF_ERROR(Range("stream_interval", static_cast<double>(interval), 1, 1 << 24));
  return interval;
}

absl::Status CheckGenerateSpec(const GenerateSpec& spec) {
  const SamplingSpec& s = spec.sampling;
  SAGE_RETURN_IF_ERROR(Range("temperature", s.temperature, 0, 100));
  SAGE_RETURN_IF_ERROR(Range("top_k", s.top_k, 0, 1 << 30));
  SAGE_RETURN_IF_ERROR(Range("top_p", s.top_p, 0, 1));
  SAGE_RETURN_IF_ERROR(Range("min_p", s.min_p, 0, 1));
  SAGE_RETURN_IF_ERROR(Range("repetition_penalty", s.repetition_penalty, 1e-6, 100));
  SAGE_RETURN_IF_ERROR(Range("presence_penalty", s.presence_penalty, -2, 2));
  SAGE_RETURN_IF_ERROR(Range("frequency_penalty", s.frequency_penalty, -2, 2));
  SAGE_RETURN_IF_ERROR(Range("max_tokens", static_cast<double>(spec.max_tokens), 1, 1 << 24));
  SAGE_RETURN_IF_ERROR(Range("n", spec.n, 1, 128));
  SAGE_RETURN_IF_ERROR(Range("logprobs", spec.logprobs, -1, 20));
  SAGE_RETURN_IF_ERROR(Range("logit_bias", static_cast<double>(s.logit_bias.size()), 0, 1024));
  for (const auto& [id, bias] : s.logit_bias) {
    if (id < 0) return BadField("logit_bias", "OUT_OF_RANGE", absl::StrCat("an id must not be negative, got ", id));
    SAGE_RETURN_IF_ERROR(Range("logit_bias", bias, -100, 100));
  }
  if (spec.stop.size() > 16) return BadField("stop", "TOO_MANY", absl::StrCat("at most 16, got ", spec.stop.size()));
  for (const std::string& stop : spec.stop) {
    if (stop.empty() || stop.size() > 1024) {
      return BadField("stop", "OUT_OF_RANGE", absl::StrCat("1 to 1024 bytes each, got ", stop.size()));
    }
  }
  if (spec.stop_ids.size() > 256) {
    return BadField("stop_ids", "TOO_MANY", absl::StrCat("at most 256, got ", spec.stop_ids.size()));
  }
  return absl::OkStatus();
}

void FillUpdate(const GenerationEvent& event, const Tokenizer* tokenizer, bool logprobs, pb::GenerationUpdate* out) {
  out->set_index(event.choice);
  out->set_text(event.text);
  for (const TokenRecord& token : event.tokens) {
    auto* row = out->add_tokens();
    row->set_id(token.id);
    if (!logprobs) continue;
    row->set_logprob(token.logprob);
    FillTop(token.top, row->mutable_top());
    if (tokenizer == nullptr) continue;
    row->set_token(LossyUtf8(tokenizer->TokenBytes(token.id, false).value_or(std::string())));
  }
  out->set_finish_reason(event.finish_reason);
  out->set_stop_match(event.stop_match);
  out->set_seed(event.seed);
  out->set_last(event.last);
  if (!event.last) return;
  out->mutable_usage()->set_prompt_tokens(event.usage.prompt_tokens);
  out->mutable_usage()->set_completion_tokens(event.usage.completion_tokens);
  out->mutable_usage()->set_cached_tokens(event.usage.cached_tokens);
  out->mutable_timings()->set_queue_ms(event.timings.queue_ms);
  out->mutable_timings()->set_prefill_ms(event.timings.prefill_ms);
  out->mutable_timings()->set_decode_ms(event.timings.decode_ms);
  out->mutable_timings()->set_first_token_ms(event.timings.first_token_ms);
}

void FillScore(const ScoreResult& result, pb::ScoreResponse* out) {
  out->set_nll(result.nll);
  out->set_ppl(result.ppl);
  out->set_scored(result.scored);
  out->set_windows(result.windows);
  out->set_window(result.window);
  for (const ScorePosition& position : result.positions) {
    auto* row = out->add_positions();
    row->set_id(position.id);
    row->set_logprob(position.logprob);
    row->set_rank(position.rank);
    FillTop(position.top, row->mutable_top());
  }
}

absl::StatusOr<OrderedJson> ToChatContext(const pb::Conversation& conversation) {
  OrderedJson context = OrderedJson::object();
  if (!conversation.template_args_json().empty()) {
    SAGE_ASSIGN_OR_RETURN(
        context, ParseField(conversation.template_args_json(), "template_args_json", OrderedJson::value_t::object));
  }
  OrderedJson messages = OrderedJson::array();
  if (!conversation.messages_json().empty()) {
    if (conversation.messages_size() > 0) {
      return BadField("conversation", "BOTH_GIVEN", "messages or messages_json, not both");
    }
    SAGE_ASSIGN_OR_RETURN(messages,
                          ParseField(conversation.messages_json(), "messages_json", OrderedJson::value_t::array));
  }
  for (const pb::ChatMessage& message : conversation.messages()) {
    OrderedJson row = {{"role", message.role()}, {"content", message.content()}};
    if (!message.name().empty()) row["name"] = message.name();
    if (!message.tool_call_id().empty()) row["tool_call_id"] = message.tool_call_id();
    if (!message.tool_calls_json().empty()) {
      SAGE_ASSIGN_OR_RETURN(row["tool_calls"],
                            ParseField(message.tool_calls_json(), "tool_calls_json", OrderedJson::value_t::array));
    }
    messages.push_back(std::move(row));
  }
  if (messages.empty()) return BadField("messages", "EMPTY", "at least one message is needed");
  if (messages.size() > 100000) return BadField("messages", "TOO_MANY", "at most 100000 messages");
  for (const OrderedJson& message : messages) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      return BadField("messages", "BAD_MESSAGE", "each message is an object with a \"role\" text");
    }
  }
  context["messages"] = std::move(messages);
  if (!conversation.tools_json().empty()) {
    SAGE_ASSIGN_OR_RETURN(context["tools"],
                          ParseField(conversation.tools_json(), "tools_json", OrderedJson::value_t::array));
  }
  return context;
}

}  // namespace sage::server
