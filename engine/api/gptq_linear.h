// Integer weights stored as the GPTQ family writes them (reference/quantization.md 1.1): shared by the gptq strategies.
//
//   qweight  I32 [K b / 32, N]  unsigned codes, dense bitstream down each column
//   qzeros   I32 [G, N b / 32]  zero points, the same stream along each row: v1 words (zero - 1) when spec.symmetric,
//                               where every zero is 2^(b-1); v2 words (the zero itself) otherwise
//   scales   F16 [G, N]         files of other tools may hold F32 or BF16
//   g_idx    I32 [K]            the group of each input; k / group_size unless spec.act_order. Files may lack it.
// w = scale * (code - zero), one f32 product. The rule for qzeros makes one spec mean one checkpoint_format: symmetric
// layers are "gptq", which every reader knows, asymmetric ones "gptq_v2", in which no zero is unsafe. A reader of files
// brings qzeros into this form; codes, scales and g_idx are served as they lie in the file.
//
// A plan speaks of signed codes and zeros, as those of the other integer strategies do: code_signed = code - 2^(b-1).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/api/checkpoint_format.h"
#include "engine/api/linear_strategy.h"
#include "engine/quant/gptq_layout.h"

namespace sage {

// What config.json's quantization_config (and quantize_config.json) must say of layers stored as above: the keys of
// GPTQModel 7. `ignored` names modules that stay dense; they become exclusion rules under "dynamic".
Json GptqQuantizationConfig(const LinearSpec& spec, int bits, const std::vector<std::string>& ignored);
// One "dynamic" rule a module. INVALID_ARGUMENT where the rules cannot say it: symmetric and asymmetric layers in one
// folder need one version of zeros.
absl::StatusOr<Json> MergeGptqConfigs(Json config, const std::vector<MixedModules>& mixed);

// How qzeros of such a layer are to be read.
inline GptqZeros GptqZerosOf(const LinearSpec& spec) { return spec.symmetric ? GptqZeros::kV1 : GptqZeros::kV2; }

namespace linear_strategies {

// Sizes that other readers load: N and K multiples of 32, groups of any size that divides K or one a row.
absl::Status CheckGptq(std::string_view name, int bits, const LinearSpec& spec, int64_t N, int64_t K);
absl::StatusOr<StoredLinear> QuantizeGptq(std::string_view name, int bits, const TensorView& weight,
                                          const LinearSpec& spec, const LayerPlan& plan, ThreadPool& threads);
absl::Status DequantizeGptqRows(int bits, const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out);
// Served by the panel kernels of int4_w4a16 (2, 3 and 4 bits) or int8_w8a16.
absl::StatusOr<std::unique_ptr<BoundLinear>> BindGptq(int bits, const StoredLinear& stored, const Backend& backend,
                                                      Priority priority, ThreadPool& threads);

template <const char* kName, int kBits>
struct GptqLinear {
  static absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) {
    return CheckGptq(kName, kBits, spec, N, K);
  }
  static absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                               ThreadPool& threads) {
    return QuantizeGptq(kName, kBits, weight, spec, plan, threads);
  }
  static absl::Status DequantizeRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) {
    return DequantizeGptqRows(kBits, stored, n_begin, n_end, out);
  }
  // Codes are copied: the map behind `stored` may go.
  static absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored, std::shared_ptr<const void>,
                                                           const Backend& backend, Priority priority,
                                                           ThreadPool& threads) {
    return BindGptq(kBits, stored, backend, priority, threads);
  }
};

}  // namespace linear_strategies
}  // namespace sage
