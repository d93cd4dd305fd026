// Attention over int8 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_int8_per_token_avx512";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kInt8, kAvx512Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionInt8PerTokenAvx512;
const AttentionKernelDef kAttentionInt8PerTokenAvx512 = {
    .name = kName, .kv_strategy = "int8_per_token", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
