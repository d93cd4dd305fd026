// One function a file format; each gives a finished pipeline.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/tokenizer/pipeline.h"

namespace sage {

using PipelinePtr = std::shared_ptr<PipelineTokenizer>;

absl::StatusOr<PipelinePtr> ParseTokenizerJson(const Json& json);
// vocab.json and merges.txt with tokenizer_config.json (may be null): GPT-2's pattern, or Qwen2's when the class says
// so.
absl::StatusOr<PipelinePtr> ParseVocabMerges(const Json& vocab, std::string_view merges, const Json& config);
// A SentencePiece ModelProto; `config` is tokenizer_config.json or null.
absl::StatusOr<PipelinePtr> ParseSentencePiece(std::string_view bytes, const Json& config);
// llama2.c's tokenizer.bin.
absl::StatusOr<PipelinePtr> ParseLlama2c(std::string_view bytes);
absl::StatusOr<PipelinePtr> ParseGgufVocabulary(const Json& metadata);

absl::Status InvalidTokenizer(std::string_view message);

// One piece of a SentencePiece-like vocabulary; the kinds are those of ModelProto and GGUF.
enum class PieceKind { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
struct ScoredPiece {
  std::string text;
  float score = 0;
  PieceKind kind = PieceKind::kNormal;
};
// The BPE-by-score or Unigram model over `pieces`. `match_user_defined`: inside the model, as SentencePiece does.
absl::StatusOr<std::unique_ptr<SubwordModel>> MakeScoredModel(const std::vector<ScoredPiece>& pieces, bool unigram,
                                                              bool byte_fallback, bool match_user_defined);

}  // namespace sage
