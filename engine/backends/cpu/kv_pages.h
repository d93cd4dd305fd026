// KV pages of the CPU with attention over them; the layout of a page is in kv_page_format.h.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/api/backend.h"
#include "engine/backends/cpu/kernels/tier.h"
#include "engine/base/cpu_features.h"

namespace sage::cpu {

absl::StatusOr<std::unique_ptr<KvKernel>> BindKvPages(const KvLayout& layout, KvFormat format, const TierFns& tier,
                                                      std::string kernel);
// Empty when the tier runs on `cpu` and the layout is one that pages hold, else why not.
std::string RefuseKvPages(const KvLayout& layout, const std::string& tier, const CpuFeatures& cpu);

}  // namespace sage::cpu
