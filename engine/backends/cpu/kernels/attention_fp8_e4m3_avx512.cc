// Attention over e4m3 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_fp8_e4m3_avx512";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kE4M3, kAvx512Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionFp8E4m3Avx512;
const AttentionKernelDef kAttentionFp8E4m3Avx512 = {
    .name = kName, .kv_strategy = "fp8_e4m3", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
