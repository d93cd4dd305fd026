// The pieces of a vocabulary file with their scores and kinds, in order of their ids, for writing it in another format.
#pragma once

#include "engine/tokenizer/loaders.h"

namespace sage {

// A SentencePiece ModelProto of type BPE. UNIMPLEMENTED for other types.
absl::StatusOr<std::vector<ScoredPiece>> ReadSentencePieces(std::string_view bytes);
// llama2.c's tokenizer.bin.
absl::StatusOr<std::vector<ScoredPiece>> ReadLlama2cPieces(std::string_view bytes);

}  // namespace sage
