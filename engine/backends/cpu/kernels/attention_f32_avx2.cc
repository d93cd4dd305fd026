// Attention over f32 pages, on AVX2.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_f32_avx2";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx2", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kF32, kAvx2Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionF32Avx2;
const AttentionKernelDef kAttentionF32Avx2 = {
    .name = kName, .kv_strategy = "f32", .rank = 10, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
