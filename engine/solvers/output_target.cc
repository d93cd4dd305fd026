// Least squares through the triangular factor, and its check across halves.
#include "engine/solvers/output_target.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"
#include "engine/solvers/triangular_factor.h"

namespace sage {
namespace {

absl::Status CheckFinite(const char* name, absl::Span<const float> values, int64_t count) {
  if (values.size() != static_cast<size_t>(count)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TARGET_SHAPE",
                     absl::StrCat("output target: ", name, " must have ", count, " values, got ", values.size()));
  }
  for (const float value : values) {
    if (!std::isfinite(value)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "NON_FINITE_TARGET",
                       absl::StrCat("output target: ", name, " must be finite, got ", value));
    }
  }
  return absl::OkStatus();
}

// E (H + damp * mean)^-1 [N, K], or empty when H cannot be factored.
std::vector<float> Correction(absl::Span<const float> gram, absl::Span<const float> cross, int64_t N, int64_t K,
                              double damp, ThreadPool& threads) {
  double mean = 0;
  int64_t active = 0;
  for (int64_t k = 0; k < K; ++k) {
    const double value = static_cast<double>(gram[k * K + k]);
    mean += value;
    active += value > 0 ? 1 : 0;
  }
  if (active == 0) return {};
  mean /= static_cast<double>(active);
  AlignedBuffer<double> h(K * K), u(K * K);
  for (const double share : {damp, std::min(1.0, 10 * damp), 1.0}) {
    std::copy(gram.begin(), gram.end(), h.data());
    for (int64_t k = 0; k < K; ++k) {
      double& pivot = h.data()[k * K + k];
      pivot = (pivot > 0 ? pivot : mean) + share * mean;
    }
    if (FactorUpper(h.data(), K, u.data(), 0.25 * share * mean, threads) >= 0) continue;
    std::vector<double> e(cross.begin(), cross.end()), part(N * K);
    GemmSpec<double> spec;  // H^-1 = U^T U
    spec.rows = N;
    spec.columns = spec.depth = K;
    spec.a = {e.data(), K, 1};
    spec.b = {u.data(), 1, K};
    spec.zeros = KnownZeros::kRightLower;
    Gemm(spec, part.data(), K, threads);
    spec.a = {part.data(), K, 1};
    spec.b = {u.data(), K, 1};
    spec.zeros = KnownZeros::kRightUpper;
    Gemm(spec, e.data(), K, threads);
    std::vector<float> out(e.begin(), e.end());
    for (int64_t i = 0; i < N * K; ++i) {
      if (!(gram[i % K * (K + 1)] > 0)) out[i] = 0;
      if (!std::isfinite(out[i])) return {};
    }
    return out;
  }
  return {};
}

struct Agreement {
  double gain = 0, cost = 0;
};

// The correction d of other tokens takes 2 f gain - f^2 cost from the squared error of these, for a factor f.
Agreement Try(const std::vector<float>& d, const TargetSums& sums, int64_t N, int64_t K, ThreadPool& threads) {
  std::vector<float> product(N * K);
  MultiplyTransposed(d.data(), sums.gram.data(), N, K, K, product.data(), threads);
  Agreement out;
  for (int64_t i = 0; i < N * K; ++i) {
    out.gain += static_cast<double>(d[i]) * static_cast<double>(sums.cross[i]);
    out.cost += static_cast<double>(d[i]) * static_cast<double>(product[i]);
  }
  return out;
}

}  // namespace

absl::StatusOr<TargetWeight> SolveOutputTarget(absl::Span<const float> weight, int64_t N, int64_t K,
                                               const TargetSums& first, const TargetSums& second,
                                               absl::Span<const double> damps, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckFinite("the weight", weight, N * K));
  for (const TargetSums* sums : {&first, &second}) {
    SAGE_RETURN_IF_ERROR(CheckFinite("the Gram matrix", sums->gram, K * K));
    SAGE_RETURN_IF_ERROR(CheckFinite("the cross sums", sums->cross, N * K));
  }
  TargetWeight out;
  out.weight.assign(weight.begin(), weight.end());
  double most = 0;
  for (const double damp : damps) {
    if (!(damp > 0 && damp <= 1)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_DAMP",
                       absl::StrCat("output target: damp must be in (0, 1], got ", damp));
    }
    const std::vector<float> of_first = Correction(first.gram, first.cross, N, K, damp, threads);
    const std::vector<float> of_second = Correction(second.gram, second.cross, N, K, damp, threads);
    if (of_first.empty() || of_second.empty()) continue;
    const Agreement a = Try(of_first, second, N, K, threads), b = Try(of_second, first, N, K, threads);
    const double cost = a.cost + b.cost, gain = a.gain + b.gain;
    if (!(cost > 0) || !std::isfinite(cost) || !(gain > 0)) continue;
    const double strength = std::min(gain / cost, 1.0), taken = strength * (2 * gain - strength * cost);
    if (!(taken > most)) continue;
    most = taken;
    out.strength = strength;
    out.damp = damp;
  }
  if (out.strength == 0.0) return out;
  std::vector<float> gram(first.gram.begin(), first.gram.end()), cross(first.cross.begin(), first.cross.end());
  for (int64_t i = 0; i < K * K; ++i) gram[i] += second.gram[i];
  for (int64_t i = 0; i < N * K; ++i) cross[i] += second.cross[i];
  const std::vector<float> both = Correction(gram, cross, N, K, out.damp, threads);
  if (both.empty()) out.strength = 0;
  for (size_t i = 0; i < both.size(); ++i) out.weight[i] += static_cast<float>(out.strength) * both[i];
  return out;
}

}  // namespace sage
