// KV pages of the CPU: [page][kv head][K rows, then V rows][page_tokens][D padded to 16], f32 or bf16.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/api/backend.h"
#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu {

enum class KvFormat { kF32, kBF16 };
absl::StatusOr<std::unique_ptr<KvKernel>> BindKvPages(const KvLayout& layout, KvFormat format, const TierFns& tier,
                                                      std::string kernel);

}  // namespace sage::cpu
