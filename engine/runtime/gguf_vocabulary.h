// A model folder's tokenizer as "tokenizer.ggml.*" keys of a GGUF: the inverse of artifact_tokenizer.h.
//
// tokenizer.json with byte-level BPE, or vocab.json with merges.txt, becomes a "gpt2" vocabulary; tokenizer.model,
// llama2.c's tokenizer.bin, or tokenizer.json with byte fallback becomes a "llama" one. A GGUF's own keys are copied.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/artifact_source.h"
#include "engine/tensor/gguf_writer.h"

namespace sage {

// Adds the keys, then reads them back and compares the ids of test texts with those of the source's tokenizer: a
// vocabulary that would tokenize differently is refused. UNIMPLEMENTED (GGUF_TOKENIZER) says what cannot be written. A
// source without tokenizer files gets the model "none".
absl::Status AddTokenizerKeys(const ArtifactSource& source, GgufKeys& keys, std::vector<std::string>& notes);

}  // namespace sage
