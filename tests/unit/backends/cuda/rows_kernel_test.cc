// Elementwise kernels in the host emulator against plain loops, with sizes that fill no block.
#include "engine/backends/cuda/kernels/rows_kernel.h"

#include <cmath>
#include <vector>

#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"

namespace sage::cuda {
namespace {

TEST(CudaRows, RmsNorm) {
  const int64_t M = 3, K = 577, stride = 600;
  const std::vector<float> x = Normal(static_cast<size_t>(M * stride), 1), weight = Normal(static_cast<size_t>(K), 2);
  std::vector<float> y(x.size(), 7.0f);
  simt::Launch({static_cast<unsigned>(M)}, {256}, 32, [&] {
    RmsNormKernel(x.data(), stride, weight.data(), 1e-5f, static_cast<int32_t>(K), y.data(), stride);
  });
  for (int64_t m = 0; m < M; ++m) {
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += std::pow(x[static_cast<size_t>(m * stride + k)], 2);
    const double factor = 1.0 / std::sqrt(sum / static_cast<double>(K) + 1e-5);
    for (int64_t k = 0; k < stride; ++k) {
      const auto at = static_cast<size_t>(m * stride + k);
      const double want = k < K ? x[at] * factor * weight[static_cast<size_t>(k)] : 7.0;
      ASSERT_NEAR(y[at], want, 1e-5 * (1 + std::fabs(want)));
    }
  }
}

TEST(CudaRows, AddRmsNormIsTheSumAndItsNorm) {
  const int64_t M = 2, K = 333;
  std::vector<float> x = Normal(static_cast<size_t>(M * K), 1), out(x.size()), normed(x.size());
  const std::vector<float> y = Normal(x.size(), 2), weight = Normal(static_cast<size_t>(K), 3);
  std::vector<float> sum = x;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
  const auto width = static_cast<int32_t>(K);
  simt::Launch({2}, {256}, 32, [&] { RmsNormKernel(sum.data(), K, weight.data(), 1e-5f, width, normed.data(), K); });
  simt::Launch({2}, {256}, 32, [&] { AddRmsNormKernel(x.data(), y.data(), weight.data(), 1e-5f, width, out.data()); });
  EXPECT_EQ(x, sum);
  EXPECT_EQ(out, normed);
}

TEST(CudaRows, HeadNormAndRope) {
  const int D = 24, heads = 3, M = 2;
  const int64_t stride = 100;
  for (const bool interleaved : {false, true}) {
    const std::vector<float> x = Normal(static_cast<size_t>(M * stride), 3), weight = Normal(D, 4);
    const std::vector<float> cos = Normal(M * D / 2, 5), sin = Normal(M * D / 2, 6);
    std::vector<float> y = x;
    simt::Launch({M, heads}, {32}, 0, [&] { HeadNormKernel(y.data(), stride, D, weight.data(), 1e-6f); });
    const std::vector<float> normed = y;
    simt::Launch({M, heads}, {64}, 0, [&] { RopeKernel(y.data(), stride, D, cos.data(), sin.data(), interleaved); });
    for (int m = 0; m < M; ++m) {
      for (int h = 0; h < heads; ++h) {
        const size_t at = static_cast<size_t>(m * stride + h * D);
        double sum = 0;
        for (int d = 0; d < D; ++d) sum += std::pow(x[at + static_cast<size_t>(d)], 2);
        for (int d = 0; d < D; ++d) {
          const auto i = static_cast<size_t>(d);
          ASSERT_NEAR(normed[at + i], x[at + i] / std::sqrt(sum / D + 1e-6) * weight[i], 1e-5);
        }
        for (int i = 0; i < D / 2; ++i) {
          const size_t first = at + static_cast<size_t>(interleaved ? 2 * i : i);
          const size_t second = at + static_cast<size_t>(interleaved ? 2 * i + 1 : i + D / 2);
          const float c = cos[static_cast<size_t>(m * D / 2 + i)], s = sin[static_cast<size_t>(m * D / 2 + i)];
          ASSERT_EQ(y[first], normed[first] * c - normed[second] * s);
          ASSERT_EQ(y[second], normed[second] * c + normed[first] * s);
        }
      }
    }
    for (int d = heads * D; d < stride; ++d) ASSERT_EQ(y[static_cast<size_t>(d)], x[static_cast<size_t>(d)]);
  }
}

TEST(CudaRows, AddSiluGatherConvert) {
  std::vector<float> x = Normal(2050, 1), y = Normal(2050, 2);
  std::vector<float> sum = x;
  simt::Launch({3}, {256}, 0, [&] { AddKernel(sum.data(), y.data(), 2050); });
  for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], x[i] + y[i]);

  const int64_t F = 300, M = 2;
  std::vector<float> product(static_cast<size_t>(M * F));
  simt::Launch({2, 2}, {256}, 0, [&] { SiluMulKernel(x.data(), 2 * F, x.data() + F, 2 * F, F, product.data()); });
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t f = 0; f < F; ++f) {
      const double gate = x[static_cast<size_t>(m * 2 * F + f)], up = x[static_cast<size_t>(m * 2 * F + F + f)];
      ASSERT_NEAR(product[static_cast<size_t>(m * F + f)], gate / (1 + std::exp(-gate)) * up, 1e-5);
    }
  }

  const int64_t K = 101;
  std::vector<uint16_t> table(static_cast<size_t>(5 * K));
  for (size_t i = 0; i < table.size(); ++i) table[i] = FloatToBF16(x[i]);
  const int32_t ids[] = {4, 0, 2};
  std::vector<float> rows(static_cast<size_t>(3 * K));
  simt::Launch({3, 1}, {256}, 0, [&] { GatherKernel(table.data(), RowType::kBf16, ids, K, rows.data()); });
  for (int64_t m = 0; m < 3; ++m) {
    for (int64_t k = 0; k < K; ++k) {
      ASSERT_EQ(rows[static_cast<size_t>(m * K + k)], BF16ToFloat(table[static_cast<size_t>(ids[m] * K + k)]));
    }
  }

  x[3] = 1e20f;
  std::vector<uint16_t> converted(static_cast<size_t>(2 * K));
  for (const bool half : {false, true}) {
    simt::Launch({2, 1}, {256}, 0, [&] { ConvertKernel(x.data(), 200, K, half, converted.data()); });
    for (int64_t m = 0; m < 2; ++m) {
      for (int64_t k = 0; k < K; ++k) {
        const float value = x[static_cast<size_t>(m * 200 + k)];
        ASSERT_EQ(converted[static_cast<size_t>(m * K + k)],
                  half ? FloatToF16(std::min(value, 65504.0f)) : FloatToBF16(value));
      }
    }
  }
}

}  // namespace
}  // namespace sage::cuda
