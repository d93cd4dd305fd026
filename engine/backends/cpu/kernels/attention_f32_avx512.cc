// Attention over f32 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_f32_avx512";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kF32, kAvx512Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionF32Avx512;
const AttentionKernelDef kAttentionF32Avx512 = {
    .name = kName, .kv_strategy = "f32", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
