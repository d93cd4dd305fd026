// Runs panels: activations become integers once a value, products are split over threads by outputs.
#include "engine/backends/cpu/panel_linear.h"

#include <algorithm>
#include <cmath>

#include "engine/backends/cpu/split_outputs.h"
#include "engine/quant/integer_grid.h"

namespace sage::cpu {
namespace {

// Below this many values one thread quantizes alone: about two microseconds.
constexpr int64_t kInlineValues = 6 * 1024;

// One row with its own scale and zero point, the grid of compressed-tensors. A row that is not finite takes the other
// way, which makes its outputs NaN.
IntegerGrid GridOfRow(const float* row, int64_t inputs) {
  float low = 0, high = 0;
  bool finite = true;
  for (int64_t i = 0; i < inputs; ++i) {
    low = std::min(low, row[i]);
    high = std::max(high, row[i]);
    finite = finite && std::isfinite(row[i]);
  }
  IntegerGrid none;
  none.scale = 0;
  if (!finite) return none;
  const IntegerGrid grid = GridFromRange(low, high, 8, /*symmetric=*/false, DType::kF32, 0);
  return std::isfinite(grid.scale) ? grid : none;
}

void QuantizeOne(const float* row, int64_t inputs, const RowForm& form, const TierFns& tier, const RowCodes& to) {
  if (!form.activations.eight_bits) return tier.quantize_row(row, inputs, form.block, to);
  const auto quantize = form.bytes ? tier.quantize_row8 : tier.quantize_row8_wide;
  if (form.has_token_zeros()) {
    const IntegerGrid grid = GridOfRow(row, inputs);
    return quantize(row, inputs, form.block, grid.scale, grid.zero, to);
  }
  quantize(row, inputs, form.block, form.activations.scale, form.activations.zero, to);
}

// Integer form of a value, shared by every layer that reads the value with the same block size and order.
QuantizedRows QuantizeActivation(StepContext& ctx, const StepValue& x, const RowForm& form, const TierFns& tier) {
  const int64_t block = form.block, row_bytes = form.row_bytes;
  const int64_t inputs = form.order.empty() ? x.K : static_cast<int64_t>(form.order.size());
  const int64_t blocks = (inputs + block - 1) / block;
  const size_t code_bytes = (static_cast<size_t>(x.M * blocks * row_bytes) + 63) / 64 * 64;
  const size_t scale_bytes = static_cast<size_t>(x.M * blocks) * sizeof(float);
  // The id carries the block size: two layers with different groups need different forms of one value.
  uint8_t* memory =
      ctx.activations->Get(x.id * 1024 + block, form.name, code_bytes + 3 * scale_bytes, [&](uint8_t* to) {
        auto* scale = reinterpret_cast<float*>(to + code_bytes);
        auto* sum = reinterpret_cast<int32_t*>(to + code_bytes + scale_bytes);
        auto* total = reinterpret_cast<float*>(to + code_bytes + 2 * scale_bytes);
        const auto rows = [&](int64_t begin, int64_t end) {
          std::vector<float> ordered(form.order.size());
          for (int64_t m = begin; m < end; ++m) {
            const float* row = x.data + m * x.stride;
            for (size_t i = 0; i < ordered.size(); ++i) ordered[i] = form.order[i] < 0 ? 0.0f : row[form.order[i]];
            if (!ordered.empty()) row = ordered.data();
            QuantizeOne(row, inputs, form, tier, {to + m * row_bytes, scale + m, sum + m, total + m, x.M, row_bytes});
          }
        };
        if (x.M * x.K < kInlineValues) {
          rows(0, x.M);
        } else {
          ctx.threads->ParallelFor(x.M, 2, rows);
        }
      });
  return {memory,
          reinterpret_cast<float*>(memory + code_bytes),
          reinterpret_cast<int32_t*>(memory + code_bytes + scale_bytes),
          reinterpret_cast<float*>(memory + code_bytes + 2 * scale_bytes),
          x.M,
          blocks,
          row_bytes};
}

}  // namespace

void PanelLinear::Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const {
  const QuantizedRows rows = QuantizeActivation(ctx, x, form_, tier_);
  const PanelWeights w{layout_,
                       codes_.as<uint8_t>(),
                       half_,
                       scale_.as<uint8_t>(),
                       offset_.empty() ? nullptr : offset_.as<uint8_t>(),
                       shift_.empty() ? nullptr : shift_.as<int32_t>(),
                       blocks_,
                       groups_,
                       blocks_per_group_,
                       code_bias_};
  const int64_t panels = (N_ + 15) / 16;
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  // Pieces of whole pairs: two panels share each broadcast activation.
  SplitOutputs(ctx, (panels + 1) / 2, x.M * N_ * K_, [=, this](int64_t begin, int64_t end) {
    tier_.panels(rows, w, begin * 2, std::min(end * 2, panels), N_, bias, out, out_stride);
  });
}

}  // namespace sage::cpu
