// Attention over e5m2 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_fp8_e5m2_avx512";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kE5M2, kAvx512Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionFp8E5m2Avx512;
const AttentionKernelDef kAttentionFp8E5m2Avx512 = {
    .name = kName, .kv_strategy = "fp8_e5m2", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
