// How a canonical weight becomes a packed one: which codes, chunks and scale records represent it without loss, or why
// none does. Host code without CUDA, so that it is tested where there is no device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/linear_spec.h"
#include "engine/backends/cuda/kernels/linear_args.h"
#include "engine/backends/cuda/kernels/linear_pack.h"

namespace sage::cuda {

// The kernels' own bounds: k blocks are divided by products (linear_layout.h), and converting a row keeps a sum for
// every 16 inputs in shared memory.
constexpr int64_t kMostInputs = int64_t{1} << 18, kMostOutputs = int64_t{1} << 20;

struct LinearPlan {
  Code code = Code::kInt8;
  Fold fold = Fold::kScale;
  int64_t N = 0, K = 0;
  int row_blocks = 0, k_blocks = 0;
  int chunks = 1, blocks_per_group = 1, groups = 1;
  bool wide = false, zero_is_code = false;
  float factor = 1.0f;
  DecodeConstants constants;
  std::vector<uint8_t> records;  // [row block][group][64]
  std::vector<uint16_t> table;   // [16] f16, or empty
  std::vector<int32_t> order;    // the input at each place, -1: none; empty: as they come
  std::vector<float> bias;       // [N], with what a static activation zero point takes away; or empty
  CodeSource source;             // of the host's bytes, which must outlive the plan
  size_t source_bytes = 0;

  int chunk_inputs() const { return kBlockInputs / chunks; }
  size_t code_bytes() const {
    return static_cast<size_t>(row_blocks) * static_cast<size_t>(k_blocks) * static_cast<size_t>(CodeBlockBytes(code));
  }
};

// Of the form `weight` holds: integer, blocks or floats. `kernel` names the kernel in errors.
absl::StatusOr<LinearPlan> PlanLinear(const LinearWeight& weight, const std::string& kernel);

// What the kernels are told of it; the pointers are the caller's to fill in.
PackedLayer MakeLayer(const LinearPlan& plan, int multiprocessors);

// Empty when a kernel takes layers of N outputs and K inputs (0: any).
std::string RefuseSize(int64_t N, int64_t K);
// Empty when a kernel takes groups of `group_size` inputs (-1: one a row) of K (0: any); `byte_activations`: 8 bits.
std::string RefuseGroups(int64_t K, int64_t group_size, bool byte_activations);

}  // namespace sage::cuda
