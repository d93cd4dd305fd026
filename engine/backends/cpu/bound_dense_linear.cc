// Linear layers whose weights are plain floats, read where they lie.
#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/split_outputs.h"
#include "engine/base/status.h"

namespace sage::cpu {
namespace {

const float* BiasOf(const std::vector<float>& bias) { return bias.empty() ? nullptr : bias.data(); }

class DenseLinear final : public BoundLinear {
 public:
  using Fn = decltype(TierFns::dense_f32);
  DenseLinear(LinearWeight weight, Fn fn, std::string kernel)
      : weight_(std::move(weight)), fn_(fn), kernel_(std::move(kernel)) {}

  void Forward(StepContext& ctx, const StepValue& x, float* out, int64_t out_stride) const override {
    const int64_t K = weight_.K;
    SplitOutputs(ctx, (weight_.N + 7) / 8, x.M * weight_.N * K, [=, this](int64_t begin, int64_t end) {
      fn_(x.data, x.stride, x.M, K, weight_.dense.values.data, begin * 8, std::min(end * 8, weight_.N),
          BiasOf(weight_.bias), out, out_stride);
    });
  }
  int64_t N() const override { return weight_.N; }
  int64_t K() const override { return weight_.K; }
  size_t weight_bytes() const override { return weight_.dense.values.bytes; }
  std::string kernel() const override { return kernel_; }
  ReadAhead::Matrix streamed() const override { return {{{weight_.dense.values.data, weight_.dense.values.bytes}}}; }

 private:
  LinearWeight weight_;
  Fn fn_;
  std::string kernel_;
};

}  // namespace

std::string RefuseSizes(const LinearKernelQuery& query) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (query.N < 0 || query.N > kMost || query.K < 0 || query.K > kMost) {
    return absl::StrCat("N and K must be 1 .. ", kMost, " (0 = any), got N=", query.N, ", K=", query.K);
  }
  if (query.group_size == 0 || query.group_size < -1) {
    return absl::StrCat("group_size must be positive or -1, got ", query.group_size);
  }
  return "";
}

absl::StatusOr<std::unique_ptr<BoundLinear>> BindDense(LinearWeight weight, const TierFns& tier, std::string kernel) {
  const DType dtype = weight.dense.values.dtype;
  const auto fn = dtype == DType::kF32    ? tier.dense_f32
                  : dtype == DType::kF16  ? tier.dense_f16
                  : dtype == DType::kBF16 ? tier.dense_bf16
                                          : nullptr;
  if (fn == nullptr || weight.N < 1 || weight.K < 1 || weight.dense.values.shape != Shape{weight.N, weight.K}) {
    return MakeError(absl::StatusCode::kInvalidArgument, "WEIGHT_NOT_DENSE",
                     absl::StrCat(kernel, ": weight must be [", weight.N, ", ", weight.K, "] f32, f16 or bf16, got ",
                                  ShapeText(weight.dense.values.shape), " ", std::string(DTypeName(dtype))));
  }
  return std::make_unique<DenseLinear>(std::move(weight), fn, std::move(kernel));
}

}  // namespace sage::cpu
