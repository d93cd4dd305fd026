// A rank's part of a linear layer in canonical form: some of its outputs, or some of its inputs.
#pragma once

#include "absl/status/statusor.h"
#include "engine/api/backend.h"
#include "engine/api/model.h"

namespace sage {

// What rank `rank` of `size` computes of a decoder. Query heads and the feed-forward width are cut evenly; kv heads
// too, or each is held by several ranks when there are more ranks than kv heads.
struct DecoderShard {
  int rank = 0, size = 1;
  int64_t head_begin = 0, heads = 0;
  int64_t kv_head_begin = 0, kv_heads = 0;
  int64_t ffn_begin = 0, ffn = 0;
};
// INVALID_ARGUMENT (TENSOR_PARALLEL_SIZE) naming what `size` must divide.
absl::StatusOr<DecoderShard> ShardDecoder(const DecoderConfig& config, int rank, int size);

// Outputs or inputs [begin, end) of a layer.
struct LinearCut {
  bool inputs = false;
  int64_t begin = 0, end = 0;
};
// By kind: q, k, v, gate and up keep outputs, o and down inputs; anything else is whole ([0, 0)).
LinearCut CutOf(const DecoderConfig& config, const DecoderShard& shard, std::string_view kind);

// The same values: what the parts compute adds up to (inputs) or makes up (outputs) what the whole computes. A cut
// within a group of inputs keeps the group's scale for either side; act-order layers keep the groups their inputs name.
// The bias stays with the outputs, and with the first inputs. INVALID_ARGUMENT where a ggml block or a pair of 4-bit
// codes would be cut.
absl::StatusOr<LinearWeight> CutLinear(const LinearWeight& weight, const LinearCut& cut);

}  // namespace sage
