// From a text, ids or a conversation to prompt ids on an engine; shared by the gRPC and the HTTP interface.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"

namespace sage::server {

// FAILED_PRECONDITION (NO_TOKENIZER) for a model without tokenizer files.
absl::StatusOr<const TokenizerFiles*> TokenizerOf(const InferenceEngine& engine);
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const InferenceEngine& engine, const std::string& text,
                                                  bool add_special);
// The template writes special tokens itself, so none are added.
absl::StatusOr<std::vector<int32_t>> EncodeChat(const InferenceEngine& engine, const OrderedJson& context,
                                                bool add_generation_prompt);

}  // namespace sage::server
