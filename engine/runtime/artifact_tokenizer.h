// Tokenizer files of a Hugging Face folder made from a GGUF's vocabulary, so that an artifact of a GGUF is whole.
//
// "gpt2" vocabularies become byte-level BPE (vocabulary, merges, the pre-tokenizer's split pattern); "llama"
// (SentencePiece) vocabularies become BPE with byte fallback whose merges are derived from the scores, as transformers'
// converter derives them.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/json.h"

namespace sage {

// File name -> content: "tokenizer.json", "tokenizer_config.json". Empty when the file has no vocabulary.
// UNIMPLEMENTED (GGUF_TOKENIZER) names a vocabulary kind or pre-tokenizer that cannot be written.
absl::StatusOr<std::map<std::string, std::string>> GgufTokenizerFiles(const std::string& path);
absl::StatusOr<std::map<std::string, std::string>> GgufTokenizerFilesFromMetadata(const Json& metadata);

}  // namespace sage
