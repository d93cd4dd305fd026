// The quant_state record of a bitsandbytes 4-bit tensor: JSON text kept beside the weight as a U8 tensor.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sage {

struct BnbState {
  std::string quant_type;         // "nf4" or "fp4"
  int64_t blocksize = 64;         // weights of the row-major matrix that share an absmax
  std::string dtype = "float32";  // of the model before
  int64_t N = 0, K = 0;           // shape
  int64_t nested_blocksize = 0;   // 0: absmax is plain f32
  float nested_offset = 0;
};

// INVALID_ARGUMENT (BAD_QUANT_STATE) on anything else than such a record: sizes out of range, another dtype of the
// nested scales, text that is no JSON.
absl::StatusOr<BnbState> ParseBnbState(std::string_view text);
// The text that transformers writes for it.
std::string FormatBnbState(const BnbState& state);

}  // namespace sage
