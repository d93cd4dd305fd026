// Which of llama.cpp's pre-tokenizer names ("tokenizer.ggml.pre") splits as a tokenizer.json does.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/base/json.h"

namespace sage {

// From the file's normalizer and pre_tokenizer. UNIMPLEMENTED (GGUF_TOKENIZER) when no name says the same.
absl::StatusOr<std::string> GgufPreTokenizer(const Json& tokenizer_json);

}  // namespace sage
