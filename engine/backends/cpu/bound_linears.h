// Bound linear layers of the CPU: they own repacked weights and hand row ranges to the functions of a tier.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/api/backend.h"
#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu {

// Float weights read in place.
absl::StatusOr<std::unique_ptr<BoundLinear>> BindDense(LinearWeight weight, const TierFns& tier, std::string kernel);
// Why no kernel can serve these sizes, or empty: what layers are made of counts from 1 to 2^31 - 1, and 0 is "any".
std::string RefuseSizes(const LinearKernelQuery& query);
// Why the ggml kernels cannot, or empty: rows are whole blocks of 32.
std::string RefuseBlocks(const LinearKernelQuery& query);

// Integer codes repacked into panels of 16 outputs, groups of any size. `nibbles` stores two codes a byte. Columns of
// act-order weights (g_idx) are sorted by group once, and each activation row is read in the same order; groups above
// 256 that no equal blocks fill are padded the same way.
absl::StatusOr<std::unique_ptr<BoundLinear>> BindPanels(LinearWeight weight, bool nibbles, ThreadPool& threads,
                                                        const TierFns& tier, std::string kernel);
// ggml blocks of 32 repacked into the same panels.
absl::StatusOr<std::unique_ptr<BoundLinear>> BindBlocks(LinearWeight weight, ThreadPool& threads, const TierFns& tier,
                                                        std::string kernel);
// Float codes (fp8, nf4, fp4) repacked into panels of 16 outputs; the weights keep their 8 or 4 bits.
absl::StatusOr<std::unique_ptr<BoundLinear>> BindFloatPanels(LinearWeight weight, ThreadPool& threads,
                                                             const TierFns& tier, std::string kernel);

}  // namespace sage::cpu
