// The sampler: linear passes over the vocabulary; only ids near a threshold are ever sorted.
#include "engine/runtime/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int64_t kHeapLimit = 256;  // above it nth_element is cheaper than a heap

absl::Status OutOfRange(std::string_view field, std::string_view rule, double value) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_SAMPLING",
                   absl::StrCat("sampling: ", std::string(field), " must be ", std::string(rule), ", got ", value),
                   {{"field", std::string(field)}});
}

absl::Status NonFinite(std::string_view what) {
  return MakeError(absl::StatusCode::kInternal, "NON_FINITE_LOGITS",
                   absl::StrCat("logits: every value must be finite or -inf and one finite, got ", std::string(what)));
}

bool InRange(double value, double low, double high) { return value >= low && value <= high; }

uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// The largest value, and whether all are finite or -inf. In lanes, so that compilers use vectors.
struct Scanned {
  float largest = -std::numeric_limits<float>::infinity();
  bool bad = false;
};
Scanned Scan(absl::Span<const float> values) {
  constexpr size_t kLanes = 16;
  Scanned out;
  float most[kLanes];
  int32_t bad[kLanes] = {};
  std::fill(std::begin(most), std::end(most), out.largest);
  const size_t whole = values.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      const float x = values[i + j];
      most[j] = x > most[j] ? x : most[j];
      bad[j] |= x <= std::numeric_limits<float>::max() ? 0 : 1;
    }
  }
  for (size_t i = whole; i < values.size(); ++i) {
    most[0] = std::max(most[0], values[i]);
    bad[0] |= values[i] <= std::numeric_limits<float>::max() ? 0 : 1;
  }
  for (size_t j = 0; j < kLanes; ++j) {
    out.largest = std::max(out.largest, most[j]);
    out.bad = out.bad || bad[j] != 0;
  }
  return out;
}

// Index of the largest value, the first one of equals; no value is NaN.
size_t ArgMax(absl::Span<const float> values, float largest) {
  size_t i = 0;
  while (i + 1 < values.size() && values[i] != largest) ++i;
  return i;
}

bool LeavesLogits(const SamplingSpec& spec) {
  return spec.logit_bias.empty() && spec.repetition_penalty == 1.0 && spec.presence_penalty == 0 &&
         spec.frequency_penalty == 0;
}

}  // namespace

absl::Status CheckSampling(const SamplingSpec& spec, int64_t V) {
  if (!InRange(spec.temperature, 0, 100)) return OutOfRange("temperature", "in [0, 100]", spec.temperature);
  if (spec.top_k < 0) return OutOfRange("top_k", "at least 0 (0 = off)", spec.top_k);
  if (!InRange(spec.top_p, 0, 1)) return OutOfRange("top_p", "in [0, 1]", spec.top_p);
  if (!InRange(spec.min_p, 0, 1)) return OutOfRange("min_p", "in [0, 1]", spec.min_p);
  if (!InRange(spec.repetition_penalty, 0.01, 100)) {
    return OutOfRange("repetition_penalty", "in [0.01, 100]", spec.repetition_penalty);
  }
  if (!InRange(spec.presence_penalty, -2, 2))
    return OutOfRange("presence_penalty", "in [-2, 2]", spec.presence_penalty);
  if (!InRange(spec.frequency_penalty, -2, 2)) {
    return OutOfRange("frequency_penalty", "in [-2, 2]", spec.frequency_penalty);
  }
  for (const auto& [id, bias] : spec.logit_bias) {
    if (id < 0 || id >= V) {
      return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_SAMPLING",
                       absl::StrCat("sampling: logit_bias ids must be in [0, ", V, "), got ", id),
                       {{"field", "logit_bias"}});
    }
    if (!InRange(bias, -1e9, 1e9)) return OutOfRange("logit_bias", "in [-1e9, 1e9]", bias);
  }
  return absl::OkStatus();
}

double UniformDraw(uint64_t seed, int choice, int64_t position) {
  const uint64_t stream = Mix(Mix(seed) + static_cast<uint64_t>(choice));
  return static_cast<double>(Mix(stream ^ Mix(static_cast<uint64_t>(position))) >> 11) * 0x1.0p-53;
}

void Sampler::Penalise(const SamplingHistory& history, const SamplingSpec& spec) {
  const auto size = static_cast<int64_t>(adjusted_.size());
  counts_.resize(adjusted_.size(), 0);
  if (spec.repetition_penalty != 1.0) {
    const float penalty = static_cast<float>(spec.repetition_penalty);
    const auto once = [&](int32_t id) {
      if (id < 0 || id >= size || counts_[static_cast<size_t>(id)]++ > 0) return;
      float& x = adjusted_[static_cast<size_t>(id)];
      x = x < 0 ? x * penalty : x / penalty;
    };
    for (const int32_t id : history.prompt_ids) once(id);
    for (const int32_t id : history.output_ids) once(id);
    for (const auto& ids : {history.prompt_ids, history.output_ids}) {
      for (const int32_t id : ids) {
        if (id >= 0 && id < size) counts_[static_cast<size_t>(id)] = 0;
      }
    }
  }
  if (spec.presence_penalty == 0 && spec.frequency_penalty == 0) return;
  for (const int32_t id : history.output_ids) {
    if (id >= 0 && id < size) ++counts_[static_cast<size_t>(id)];
  }
  for (const int32_t id : history.output_ids) {
    if (id < 0 || id >= size) continue;
    int32_t& count = counts_[static_cast<size_t>(id)];
    if (count == 0) continue;  // seen earlier in the output
    adjusted_[static_cast<size_t>(id)] -=
        static_cast<float>(spec.presence_penalty + spec.frequency_penalty * static_cast<double>(count));
    count = 0;
  }
}

void Sampler::Adjust(absl::Span<const float> logits, const SamplingHistory& history, const SamplingSpec& spec) {
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : spec.logit_bias) {
    if (id >= 0 && static_cast<size_t>(id) < adjusted_.size()) adjusted_[static_cast<size_t>(id)] += bias;
  }
  Penalise(history, spec);
}

float Sampler::KthLargest(int64_t k) {
  heap_.clear();
  if (k > kHeapLimit) {
    heap_.assign(adjusted_.begin(), adjusted_.end());
    std::nth_element(heap_.begin(), heap_.begin() + (k - 1), heap_.end(), std::greater<float>());
    return heap_[static_cast<size_t>(k - 1)];
  }
  for (const float x : adjusted_) {
    if (static_cast<int64_t>(heap_.size()) < k) {
      heap_.push_back(x);
      std::push_heap(heap_.begin(), heap_.end(), std::greater<float>());
    } else if (x > heap_.front()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<float>());
      heap_.back() = x;
      std::push_heap(heap_.begin(), heap_.end(), std::greater<float>());
    }
  }
  return heap_.front();
}

// Weights lie in [0, 1] with the largest 1. A histogram over powers of two finds the bucket in which the nucleus ends,
// and only that bucket is sorted. An id is dropped when the ids before it (largest first) already hold top_p.
void Sampler::KeepNucleus(double top_p, Distribution* out) {
  constexpr size_t kBuckets = 64;
  std::array<double, kBuckets> mass{};
  double total = 0;
  const auto bucket_of = [](double w) {  // w in [0, 1]: its exponent, negated
    return std::min<size_t>(kBuckets - 1, 1023 - (std::bit_cast<uint64_t>(w) >> 52));
  };
  for (const double w : out->probabilities) {
    mass[bucket_of(w)] += w;
    total += w;
  }
  const double wanted = top_p * total;
  size_t edge = 0;
  double before = 0;  // mass of the buckets that are kept whole
  while (edge + 1 < kBuckets && before + mass[edge] < wanted) before += mass[edge++];

  bucket_.clear();
  for (size_t i = 0; i < out->ids.size(); ++i) {
    if (bucket_of(out->probabilities[i]) == edge) bucket_.emplace_back(-out->probabilities[i], out->ids[i]);
  }
  std::sort(bucket_.begin(), bucket_.end());
  std::pair<double, int32_t> last{-2.0, 0};  // the last pair that is kept; nothing of the bucket yet
  for (const auto& entry : bucket_) {
    if (before >= wanted && before > 0) break;
    last = entry;
    before -= entry.first;
  }
  size_t kept = 0;
  for (size_t i = 0; i < out->ids.size(); ++i) {
    const double w = out->probabilities[i];
    const size_t bucket = bucket_of(w);
    if (bucket > edge || (bucket == edge && std::pair(-w, out->ids[i]) > last)) continue;
    out->ids[kept] = out->ids[i];
    out->probabilities[kept++] = w;
  }
  out->ids.resize(kept);
  out->probabilities.resize(kept);
}

absl::Status Sampler::Filter(absl::Span<const float> logits, const SamplingHistory& history, const SamplingSpec& spec,
                             Distribution* out) {
  Scanned scanned = Scan(logits);
  if (scanned.bad || logits.empty()) return NonFinite(logits.empty() ? "no values" : "NaN or +inf");
  const bool greedy = spec.temperature == 0 || spec.top_p == 0;
  if (!greedy || !LeavesLogits(spec)) {
    Adjust(logits, history, spec);
    logits = adjusted_;
    scanned = Scan(logits);
  }
  const float largest = scanned.largest;
  if (!std::isfinite(largest)) return NonFinite("no finite value");
  out->ids.clear();
  out->probabilities.clear();
  if (greedy) {
    out->ids.push_back(static_cast<int32_t>(ArgMax(logits, largest)));
    out->probabilities.push_back(1.0);
    return absl::OkStatus();
  }
  const int64_t V = static_cast<int64_t>(adjusted_.size());
  float threshold = std::numeric_limits<float>::lowest();  // drops -inf
  if (spec.top_k > 0 && spec.top_k < V) threshold = std::max(threshold, KthLargest(spec.top_k));
  const double scale = 1.0 / spec.temperature;
  for (size_t i = 0; i < adjusted_.size(); ++i) {
    if (adjusted_[i] < threshold) continue;
    const double d = static_cast<double>(adjusted_[i]) - largest;
    out->ids.push_back(static_cast<int32_t>(i));
    out->probabilities.push_back(d == 0 ? 1.0 : std::exp(d * scale));
  }
  if (spec.top_p < 1) KeepNucleus(spec.top_p, out);
  size_t kept = 0;
  double total = 0;
  for (size_t i = 0; i < out->ids.size(); ++i) {  // min_p of the largest, whose weight is 1
    if (out->probabilities[i] < spec.min_p) continue;
    total += out->probabilities[i];
    out->ids[kept] = out->ids[i];
    out->probabilities[kept++] = out->probabilities[i];
  }
  out->ids.resize(kept);
  out->probabilities.resize(kept);
  for (double& p : out->probabilities) p /= total;
  return absl::OkStatus();
}

absl::StatusOr<int32_t> Sampler::Sample(absl::Span<const float> logits, const SamplingHistory& history,
                                        const SamplingSpec& spec, uint64_t seed, int choice, int64_t position) {
  SAGE_RETURN_IF_ERROR(Filter(logits, history, spec, &drawn_));
  double left = UniformDraw(seed, choice, position);
  size_t last = 0;
  for (size_t i = 0; i < drawn_.ids.size(); ++i) {
    if (drawn_.probabilities[i] <= 0) continue;
    last = i;
    if (left < drawn_.probabilities[i]) break;
    left -= drawn_.probabilities[i];
  }
  return drawn_.ids[last];  // rounding may leave a rest past the end: the last possible id
}

absl::StatusOr<Distribution> FilteredDistribution(absl::Span<const float> logits, const SamplingHistory& history,
                                                  const SamplingSpec& spec) {
  Sampler sampler;
  Distribution out;
  SAGE_RETURN_IF_ERROR(sampler.Filter(logits, history, spec, &out));
  return out;
}

}  // namespace sage
