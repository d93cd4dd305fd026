// How linear weights are quantized, stored and run. Plug-ins: engine/linear_strategies/<name>.cc.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/backend.h"
#include "engine/api/linear_spec.h"
#include "engine/base/json.h"

namespace sage {

// What calibration decided for one layer beyond the spec; empty vectors mean "take it from the weights".
struct LayerPlan {
  std::vector<float> scale;    // [N, G]
  std::vector<float> zero;     // [N, G]
  std::vector<int8_t> codes;   // [N, K], set by solvers that choose codes themselves (GPTQ, AutoRound)
  std::vector<int32_t> g_idx;  // [K]
};

struct LinearStrategyDef {
  std::string_view name;  // "int4_w4a16"
  std::string_view summary;
  std::string_view weight_dtype;  // seed word: "int4", "int8", "bf16", ...
  int weight_bits = 0;
  int activation_bits = 16;   // 32 for the f32 reference
  bool integer_grid = false;  // takes plans of signed codes, scales and zeros (GPTQ, AWQ, mse ...)
  bool stores_g_idx = false;  // keeps LayerPlan::g_idx (act-order groups)
  bool quantizes = true;      // false: stores the weights as they are (f32, f16, bf16, ggml blocks)
  // Conformance bound: ||Forward - ref|| / ||ref|| with ref = f64 product of Dequantize and the same f32 input.
  double tolerance = 1e-3;

  // OK, or INVALID_ARGUMENT naming field, rule and value (reason e.g. GROUP_SIZE_MUST_DIVIDE_K, metadata "allowed").
  absl::Status (*check)(const LinearSpec& spec, int64_t N, int64_t K) = nullptr;
  // weight: [N, K] f32/f16/bf16. Scales are rounded to spec.scale_dtype first, codes computed with the stored scale.
  absl::StatusOr<StoredLinear> (*quantize)(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                           ThreadPool& threads) = nullptr;
  // Rows [n_begin, n_end) as f32 [n_end - n_begin, K]: exactly what the stored bits mean. Readable; also serves
  // embedding look-ups of quantized tables.
  absl::Status (*dequantize_rows)(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out) = nullptr;
  // `stored` may point into memory held by `keep_alive`.
  absl::StatusOr<std::unique_ptr<BoundLinear>> (*bind)(const StoredLinear& stored,
                                                       std::shared_ptr<const void> keep_alive, const Backend& backend,
                                                       Priority priority, ThreadPool& threads) = nullptr;
};

absl::Span<const LinearStrategyDef* const> LinearStrategies();
// NOT_FOUND (reason UNKNOWN_LINEAR_STRATEGY) lists the names.
absl::StatusOr<const LinearStrategyDef*> FindLinearStrategy(std::string_view name);

// All rows through the strategy that stored.spec.strategy names: [N, K] f32.
absl::StatusOr<Tensor> Dequantize(const StoredLinear& stored);

// Resolves the words of the wire and the CLI to one strategy: a plug-in name, a short word ("int4", "int8", "none" ->
// ""), or weight/activation dtypes ("int4" + "w8a16" means 4-bit weights with 16-bit activations). INVALID_ARGUMENT
// lists candidates.
absl::StatusOr<std::string> ResolveLinearStrategy(std::string_view word);
absl::StatusOr<std::string> ResolveLinearStrategy(std::string_view weight_dtype, std::string_view activation_dtype);

// Sizes to name in errors: divisors of K, largest first; those under 8 only where there is no other, 1 never.
std::vector<int> GroupSizesFor(int64_t K);

}  // namespace sage
