// Cuts a stream of ids into windows and picks some of them.
#include "engine/runtime/calibration_samples.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr size_t kFewestIds = 16;

// SplitMix64 (Steele, Lea, Flood 2014): the same numbers everywhere, which std::shuffle does not promise.
class SplitMix {
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> ChooseSamples(const Dataset& dataset, const TokenizerFiles* files,
                                                                int64_t samples, int64_t length, uint64_t seed) {
  SAGE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TokenizeStream(dataset, files));
  if (ids.size() < kFewestIds) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOO_FEW_IDS",
                     absl::StrCat("dataset: must have at least ", kFewestIds, " tokens, got ", ids.size()));
  }
  const size_t width = std::min(static_cast<size_t>(length), ids.size()), windows = ids.size() / width;
  std::vector<size_t> chosen(windows);
  std::iota(chosen.begin(), chosen.end(), size_t{0});
  if (windows > static_cast<size_t>(samples)) {
    SplitMix random(seed);
    for (size_t i = 0; i < static_cast<size_t>(samples); ++i) {  // the first steps of a Fisher-Yates shuffle
      std::swap(chosen[i], chosen[i + static_cast<size_t>(random.Next() % (windows - i))]);
    }
    chosen.resize(static_cast<size_t>(samples));
    std::sort(chosen.begin(), chosen.end());
  }
  std::vector<std::vector<int32_t>> out;
  for (const size_t w : chosen) {
    out.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(w * width),
                     ids.begin() + static_cast<std::ptrdiff_t>((w + 1) * width));
  }
  return out;
}

}  // namespace sage
