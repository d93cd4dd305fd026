// Logits of a whole model on a few ids, for tests that compare two folders.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/decoder/decoder.h"
#include "tests/unit/decoder/sequence_logits.h"

namespace sage {

inline absl::StatusOr<std::vector<float>> LogitsOf(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(path));
  return SequenceLogits(checkpoint, {{1, 5, 9, 30, 12, 39, 7, 3, 21, 17, 18, 2, 35, 4, 4, 11, 8, 0, 26}});
}

// Largest difference over the largest logit.
inline double Apart(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(a[i])));
  }
  return a.size() == b.size() ? most / largest : 1e9;
}

}  // namespace sage
