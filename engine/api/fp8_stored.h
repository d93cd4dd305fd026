// From the tensors of an fp8 module in a Hugging Face folder to a stored linear: shared by the formats that hold them.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/api/hf_folder.h"

namespace sage {

struct Fp8Scheme {
  enum class Weights { kAny, kTensor, kChannel, kBlock };  // kAny: a tensor or a channel, whichever the scales have
  enum class Activations { kNone, kDynamic, kStatic };
  Weights weights = Weights::kAny;
  int block_rows = 0, block_columns = 0;  // kBlock
  Activations activations = Activations::kNone;
  int activation_group_size = -1;  // kDynamic: inputs that share a scale, -1 = one a token
  bool e5m2 = false;               // the config asks for e5m2; without its word the tensors' own dtype counts

  bool operator==(const Fp8Scheme&) const = default;
};

// True when <module>.weight is F8_E4M3 or F8_E5M2.
bool HoldsFp8(const HfFolder& folder, const std::string& module);
// True when the shape of a scale is what `scheme` says for [N, K].
bool ScaleFits(const Fp8Scheme& scheme, const Shape& scale, int64_t N, int64_t K);
// `scale` is the name below the module: "weight_scale" or "weight_scale_inv" (multiplied in spite of its name).
// CHECKPOINT_INVALID when a tensor is missing or its shape is not the scheme's.
absl::StatusOr<StoredLinear> GetFp8(const HfFolder& folder, const std::string& module, const Fp8Scheme& scheme,
                                    const std::string& scale);

}  // namespace sage
