// Records of the CPU kernels; the tables are generated from kernels/linear_*.cc and kernels/attention_*.cc.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/backend.h"
#include "engine/base/cpu_features.h"

namespace sage {

struct LinearKernelDef {
  std::string_view name;      // file stem: "linear_int4_w4a16_avx512"
  std::string_view strategy;  // linear strategy it serves; several kernels may serve one
  int rank = 0;               // the accepting kernel with the largest rank is chosen
  // Empty when it accepts, else the reason in words ("needs AVX-512 VNNI").
  std::string (*refuse)(const LinearKernelQuery& query, const CpuFeatures& cpu) = nullptr;
  absl::StatusOr<std::unique_ptr<BoundLinear>> (*bind)(LinearWeight weight, ThreadPool& threads) = nullptr;
};

struct AttentionKernelDef {
  std::string_view name;  // "attention_bf16_avx512"
  std::string_view kv_strategy;
  int rank = 0;
  std::string (*refuse)(const KvLayout& layout, const CpuFeatures& cpu) = nullptr;
  absl::StatusOr<std::unique_ptr<KvKernel>> (*bind)(const KvLayout& layout) = nullptr;
};

absl::Span<const LinearKernelDef* const> CpuLinearKernels();
absl::Span<const AttentionKernelDef* const> CpuAttentionKernels();

}  // namespace sage
