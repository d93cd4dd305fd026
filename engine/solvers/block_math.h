// Loops between the matrix products of a decoder block's training: exponentials and sums of a row with one fixed order,
// plain C++ that vectorizes without compiler flags, so that no processor changes a bit.
#pragma once

#include <bit>
#include <cstdint>

namespace sage {

// e^x within 2e-7 of it, 0 below -87.
inline float ExpOf(float x) {
  const float high = x > 88.0f ? 88.0f : x;
  const float inside = high < -87.0f ? -87.0f : high;
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number
  const float whole = (inside * 1.44269504f + kRounding) - kRounding;
  const float rest = (inside - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  const float value = sum * std::bit_cast<float>((static_cast<int32_t>(whole) + 127) << 23);
  return x < -87.0f ? 0.0f : value;
}

constexpr int kSumLanes = 8;

// Sum of a[i] * b[i] in eight interleaved chains.
inline float DotOf(const float* a, const float* b, int64_t count) {
  float lane[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) lane[j] += a[i + j] * b[i + j];
  }
  float sum = 0;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (const float part : lane) sum += part;
  return sum;
}

inline float SumOf(const float* a, int64_t count) {
  float lane[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) lane[j] += a[i + j];
  }
  float sum = 0;
  for (; i < count; ++i) sum += a[i];
  for (const float part : lane) sum += part;
  return sum;
}

inline float MaxOf(const float* a, int64_t count) {
  float most = a[0];
  for (int64_t i = 1; i < count; ++i) most = a[i] > most ? a[i] : most;
  return most;
}

}  // namespace sage
