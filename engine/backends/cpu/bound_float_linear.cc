// Linear layers whose weights are float codes: packs them into panels at load, rounds activations where the scheme
// asks.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernels/panel_limits.h"
#include "engine/backends/cpu/split_outputs.h"
#include "engine/backends/cpu/weight_memory.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"

namespace sage::cpu {
namespace {

// e4m3 codes are decoded as value * 2^-8 (simd_generic.h).
constexpr float kE4M3Factor = 256.0f;

absl::Status Refuse(const std::string& kernel, std::string_view reason, const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat(kernel, ": ", rule));
}

float LargestMagnitude(const float* x, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(x[i]));
  return most;
}

void RoundRow(const float* x, int64_t K, const FloatActivations& scheme, float* out) {
  const int64_t group = scheme.group_size > 0 ? scheme.group_size : K;
  for (int64_t begin = 0; begin < K; begin += group) {
    const int64_t count = std::min(group, K - begin);
    float scale = scheme.scale;
    if (scheme.kind == FloatActivations::Kind::kDynamic) {
      const float amax = LargestMagnitude(x + begin, count);
      scale = scheme.group_size > 0 ? GroupScaleE4M3(amax) : TokenScaleE4M3(amax);
    }
    // x - x is zero, or NaN for what is not finite: saturation must not hide it.
    for (int64_t i = begin; i < begin + count; ++i) out[i] = RoundToE4M3(x[i] / scale) * scale + (x[i] - x[i]);
  }
}

class FloatLinear final : public BoundLinear {
 public:
  FloatLinear(const TierFns& tier, std::string kernel) : tier_(tier), kernel_(std::move(kernel)) {}

  absl::Status Pack(const LinearWeight& weight, ThreadPool& threads);

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override {
    const float* rows = x.data;
    int64_t stride = x.stride;
    if (activations_.kind != FloatActivations::Kind::kNone) {
      rows = RoundActivation(ctx, x);
      stride = K_;
    }
    const FloatPanels panels{code_,
                             codes_.as<uint8_t>(),
                             scale_.as<float>(),
                             table_,
                             begin_.data(),
                             column_.data(),
                             static_cast<int64_t>(column_.size()),
                             scales_,
                             panel_bytes_};
    // Pieces of whole pairs: two panels share each broadcast activation.
    const int64_t count = (N_ + 15) / 16;
    SplitOutputs(ctx, (count + 1) / 2, x.M * N_ * K_, [=, this](int64_t begin, int64_t end) {
      tier_.float_panels(rows, stride, x.M, panels, begin * 2, std::min(end * 2, count), N_,
                         bias_.empty() ? nullptr : bias_.data(), out, out_stride);
    });
  }
  int64_t N() const override { return N_; }
  int64_t K() const override { return K_; }
  size_t weight_bytes() const override { return codes_.bytes() + scale_.bytes(); }
  ReadAhead::Matrix streamed() const override {
    return {{{codes_.as<uint8_t>(), codes_.bytes()}, {scale_.as<uint8_t>(), scale_.bytes()}}};
  }
  std::string kernel() const override { return kernel_; }

 private:
  const float* RoundActivation(StepContext& ctx, const StepValue& x) const;
  void CutSegments(const FloatCodeWeight& w);
  uint8_t CodeAt(const FloatCodeWeight& w, int64_t n, int64_t k) const;
  // False when the panel holds a code that is no finite number.
  bool PackPanel(const FloatCodeWeight& w, int64_t panel);

  const TierFns& tier_;
  std::string kernel_;
  int64_t N_ = 0, K_ = 0, scales_ = 0, scale_width_ = 0, panel_bytes_ = 0;
  FloatCode code_ = FloatCode::kE4M3;
  alignas(64) float table_[16] = {};
  std::vector<int32_t> begin_, column_;  // segments, see FloatPanels
  WeightMemory codes_, scale_;
  std::vector<float> bias_;
  FloatActivations activations_;
};

// Layers that read one value under one scheme share its rounded form.
const float* FloatLinear::RoundActivation(StepContext& ctx, const StepValue& x) const {
  const bool is_static = activations_.kind == FloatActivations::Kind::kStatic;
  const uint32_t low = is_static ? std::bit_cast<uint32_t>(activations_.scale)
                                 : static_cast<uint32_t>(std::max<int64_t>(activations_.group_size, 0));
  const int64_t id = static_cast<int64_t>(static_cast<uint64_t>(x.id) << 32 | low);
  const size_t bytes = static_cast<size_t>(x.M * x.K) * sizeof(float);
  return reinterpret_cast<const float*>(
      ctx.activations->Get(id, is_static ? "e4m3_static" : "e4m3_dynamic", bytes, [&](uint8_t* to) {
        auto* rounded = reinterpret_cast<float*>(to);
        const auto rows = [&](int64_t begin, int64_t end) {
          for (int64_t m = begin; m < end; ++m) RoundRow(x.data + m * x.stride, x.K, activations_, rounded + m * x.K);
        };
        if (x.M * x.K < kInlineWork) {
          rows(0, x.M);
        } else {
          ctx.threads->ParallelFor(x.M, 1, rows);
        }
      }));
}

// A segment lies in one scale block of every row: whole blocks, or their pieces when a block is long. Blocks of the
// flat matrix that cross rows begin at other inputs in each row, all multiples of the common divisor of K and the
// block.
void FloatLinear::CutSegments(const FloatCodeWeight& w) {
  const int64_t block = w.flat_block > 0 ? std::gcd(K_, w.flat_block) : std::min(w.block_columns, K_);
  scale_width_ = block;
  scales_ = (K_ + block - 1) / block;
  for (int64_t column = 0; column < scales_; ++column) {
    const int64_t end = std::min(K_, (column + 1) * block);
    for (int64_t k = column * block; k < end; k += kLongestSegment) {
      begin_.push_back(static_cast<int32_t>(k));
      column_.push_back(static_cast<int32_t>(column));
      const int64_t inputs = std::min(kLongestSegment, end - k);
      panel_bytes_ += code_ == FloatCode::kTable16 ? (inputs + 1) / 2 * 16 : inputs * 16;
    }
  }
  begin_.push_back(static_cast<int32_t>(K_));
}

uint8_t FloatLinear::CodeAt(const FloatCodeWeight& w, int64_t n, int64_t k) const {
  const int64_t i = n * K_ + k;
  if (code_ != FloatCode::kTable16) return w.codes[i];
  const bool high = (i % 2 == 0) == w.high_nibble_first;
  return high ? w.codes[i / 2] >> 4 : w.codes[i / 2] & 15;
}

bool FloatLinear::PackPanel(const FloatCodeWeight& w, int64_t panel) {
  const int64_t rows = std::min<int64_t>(16, N_ - panel * 16);
  const bool nibbles = code_ == FloatCode::kTable16;
  const int64_t segments = static_cast<int64_t>(column_.size());
  bool finite = true;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t n = panel * 16 + r;
    uint8_t* to = codes_.as<uint8_t>() + panel * panel_bytes_;
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t k_begin = begin_[static_cast<size_t>(s)], k_end = begin_[static_cast<size_t>(s) + 1];
      for (int64_t k = k_begin; k < k_end; ++k) {
        const uint8_t code = CodeAt(w, n, k);
        const int64_t i = k - k_begin;
        if (nibbles) {
          to[i / 2 * 16 + r] |= static_cast<uint8_t>(i % 2 == 0 ? code : code << 4);
        } else {
          finite = finite && (code_ == FloatCode::kE4M3 ? IsFiniteE4M3(code) : IsFiniteE5M2(code));
          to[i * 16 + r] = code;
        }
      }
      to += nibbles ? (k_end - k_begin + 1) / 2 * 16 : (k_end - k_begin) * 16;
    }
    const int64_t columns = w.flat_block > 0 ? 0 : (K_ + w.block_columns - 1) / w.block_columns;
    for (int64_t c = 0; c < scales_; ++c) {
      const int64_t from =
          w.flat_block > 0 ? (n * K_ + c * scale_width_) / w.flat_block : n / w.block_rows * columns + c;
      const float factor = code_ == FloatCode::kE4M3 ? kE4M3Factor : 1.0f;
      scale_.as<float>()[(panel * scales_ + c) * 16 + r] = w.scale[static_cast<size_t>(from)] * factor;
    }
  }
  return finite;
}

absl::Status FloatLinear::Pack(const LinearWeight& weight, ThreadPool& threads) {
  const FloatCodeWeight& w = weight.floats;
  N_ = weight.N;
  K_ = weight.K;
  bias_ = weight.bias;
  activations_ = w.activations;
  code_ = w.kind == FloatCodeWeight::Kind::kE4M3   ? FloatCode::kE4M3
          : w.kind == FloatCodeWeight::Kind::kE5M2 ? FloatCode::kE5M2
                                                   : FloatCode::kTable16;
  std::copy(w.table.begin(), w.table.end(), table_);
  CutSegments(w);
  if (w.flat_block > 0 && scale_width_ != w.flat_block) {
    absl::StrAppend(&kernel_, " (blocks of ", w.flat_block, " cross rows: segments of ", scale_width_, ")");
  }
  const int64_t panels = (N_ + 15) / 16;
  SAGE_ASSIGN_OR_RETURN(codes_, WeightMemory::Allocate(static_cast<size_t>(panels * panel_bytes_)));
  SAGE_ASSIGN_OR_RETURN(scale_, WeightMemory::Allocate(static_cast<size_t>(panels * scales_) * 16 * sizeof(float)));
  std::atomic<bool> finite{true};
  threads.ParallelFor(panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      if (!PackPanel(w, p)) finite = false;
    }
  });
  if (finite) return absl::OkStatus();
  return Refuse(kernel_, "NON_FINITE_WEIGHT", "weights must be finite, the codes hold a NaN or an infinity");
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

absl::Status CheckWeight(const LinearWeight& weight, const std::string& kernel) {
  const FloatCodeWeight& w = weight.floats;
  const auto refuse = [&](const std::string& rule) { return Refuse(kernel, "WEIGHT_NOT_SUPPORTED", rule); };
  const bool nibbles = w.kind == FloatCodeWeight::Kind::kTable16;
  const int64_t count = weight.N * weight.K;
  if (weight.N < 1 || weight.K < 1) return refuse("N and K must be positive");
  if (w.codes == nullptr || static_cast<int64_t>(w.bytes) != (nibbles ? CeilDivide(count, 2) : count)) {
    return refuse(absl::StrCat("codes must fill [", weight.N, ", ", weight.K, "], got ", w.bytes, " bytes"));
  }
  if (nibbles && w.table.size() != 16) return refuse("the code table must have 16 entries");
  for (const float entry : w.table) {
    if (!std::isfinite(entry)) return refuse("the code table must be finite");
  }
  if (w.flat_block < 0 || (w.flat_block == 0 && (w.block_rows < 1 || w.block_columns < 1))) {
    return refuse("scale blocks must be positive");
  }
  const int64_t scales = w.flat_block > 0 ? CeilDivide(count, w.flat_block)
                                          : CeilDivide(weight.N, w.block_rows) * CeilDivide(weight.K, w.block_columns);
  if (static_cast<int64_t>(w.scale.size()) != scales) {
    return refuse(absl::StrCat("there must be ", scales, " scales, got ", w.scale.size()));
  }
  const float most = std::numeric_limits<float>::max() / (w.kind == FloatCodeWeight::Kind::kE4M3 ? kE4M3Factor : 1.0f);
  for (const float scale : w.scale) {
    if (!(std::fabs(scale) <= most)) {
      return Refuse(kernel, "SCALE_OUT_OF_RANGE", absl::StrCat("scales must be at most ", most, ", got ", scale));
    }
  }
  const FloatActivations& a = w.activations;
  if (a.kind == FloatActivations::Kind::kStatic && !(std::isfinite(a.scale) && a.scale > 0)) {
    return refuse(absl::StrCat("the static activation scale must be positive and finite, got ", a.scale));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<BoundLinear>> BindFloatPanels(LinearWeight weight, ThreadPool& threads,
                                                             const TierFns& tier, std::string kernel) {
  SAGE_RETURN_IF_ERROR(CheckWeight(weight, kernel));
  auto out = std::make_unique<FloatLinear>(tier, std::move(kernel));
  SAGE_RETURN_IF_ERROR(out->Pack(weight, threads));
  return out;
}

}  // namespace sage::cpu
