// The OpenAI request bodies: JSON to a generation spec and the options of the answer.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "engine/base/json.h"

namespace sage::server {

struct OpenAiRequest {
  GenerateSpec spec;  // without prompt ids
  bool chat = false, stream = false, include_usage = false, echo = false;
  bool logprobs = false;
  std::string model;
  // One entry a prompt: text or ids.
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> ids;
  OrderedJson chat_context;  // {"messages", "tools", ...}
  bool add_generation_prompt = true;
};

// INVALID_ARGUMENT names the field. Fields that change nothing here (user, store, metadata, ...) are accepted; fields
// that would change the answer and are not supported are refused.
absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(const std::string& body, bool chat);

}  // namespace sage::server
