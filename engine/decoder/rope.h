// Rotary position embedding: inverse frequencies of every Hugging Face scaling, and the cos/sin rows of a step.
//
// Source: transformers 5.23 modeling_rope_utils semantics. The angle is float32(position) * inv_freq as one f32
// product.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/api/backend.h"
#include "engine/api/model.h"

namespace sage {

class Rope {
 public:
  Rope(const RopeSpec& spec, int D, int64_t max_position);

  // inv_freq [D / 2] for a position of a sequence of `length` positions (only dynamic scaling depends on it).
  void InverseFrequencies(int64_t length, float* out) const;
  float attention_scaling() const { return attention_scaling_; }

  // cos, sin [M, D / 2] for the rows of `sequences`.
  void FillTables(absl::Span<const SequenceSlice> sequences, float* cos, float* sin) const;

 private:
  void FillRow(int64_t position, const float* inv_freq, float* cos, float* sin) const;

  RopeSpec spec_;
  int D_;
  int64_t max_position_;
  std::vector<float> inv_freq_;
  float attention_scaling_ = 1.0f;
};

}  // namespace sage
