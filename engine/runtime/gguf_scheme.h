// What `--format gguf...` means: the ggml type that each tensor of a written GGUF gets.
//
//   gguf           the smallest type that holds each tensor exactly (blocks of a GGUF source as they lie; integer codes
//                  as Q4_0, Q4_1 or Q8_0; floats as they are, else F32): nothing is lost
//   gguf_f32, gguf_f16, gguf_bf16   dequantized
//   gguf_q4_0, gguf_q4_1, gguf_q8_0, gguf_q4_k, gguf_q6_k   this type for every linear layer of the blocks; embeddings
//                  and head keep their floats
//   gguf_q4_k_m    llama.cpp's mix: Q4_K, and Q6_K for the head (or tied embeddings) and for v and down of some layers
//
// Types with blocks of 256 need rows of whole blocks. Where 256 does not divide K the rule of llama.cpp applies: Q4_K
// becomes Q5_0 and Q6_K becomes Q8_0, and the answer says for which tensors.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tensor/gguf_file.h"

namespace sage {

struct GgufScheme {
  std::string word;
  bool exact = false;  // "gguf"
  bool mix = false;    // "gguf_q4_k_m"
  GgmlType type = GgmlType::kF32;
  uint32_t file_type = 0;  // general.file_type
  // Linear modules that take another type; nullopt: the floats (or blocks) of the source.
  std::map<std::string, std::optional<GgmlType>> modules = {};
};

// Every word, for error messages and listings.
std::vector<std::string> GgufWords();
bool IsGgufWord(const std::string& word);
absl::StatusOr<GgufScheme> ParseGgufScheme(const std::string& word);
// The same with types of single modules, as ConvertSpec::types has them.
absl::StatusOr<GgufScheme> ParseGgufScheme(const std::string& word, const std::map<std::string, std::string>& types);

// The type that the scheme wants for a linear layer of block `layer` of L ("v_proj", "lm_head", ...; layer < 0
// outside), before the rule for rows that are no whole blocks. Not for an exact scheme.
GgmlType WantedGgufType(const GgufScheme& scheme, const std::string& kind, int64_t layer, int64_t L);
// The type for rows of K values in place of `wanted`; `wanted` itself where it fits. kF32 when 32 does not divide K
// either.
GgmlType GgufTypeForRows(GgmlType wanted, int64_t K);

}  // namespace sage
