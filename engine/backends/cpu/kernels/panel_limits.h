// Sizes that packing and kernels of the panel layouts agree on.
#pragma once

#include <cstdint>

namespace sage::cpu {

// Inputs of one block of integer activations at most: int32 sums stay exact, and the wide copy of a panel's block
// (8 KiB) fits the first cache level.
constexpr int64_t kLongestBlock = 256;
// Inputs of one segment of float codes at most: bounds the rounding error of its sum, and its f32 copy is 8 KiB.
constexpr int64_t kLongestSegment = 128;

}  // namespace sage::cpu
