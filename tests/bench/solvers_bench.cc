// Times the dense algebra of calibration against the measured f32 peak of the machine, best of several runs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <vector>

#include "engine/base/cpu_features.h"
#include "engine/base/vector_lanes.h"
#include "engine/solvers/dense_algebra.h"
#include "engine/solvers/gptq.h"
#include "engine/solvers/triangular_factor.h"

namespace sage {
namespace {

constexpr int64_t kPeakSteps = 2000000;
constexpr int kChains = 12;

// Independent fused multiply-adds in registers: as fast as the machine can.
#define SAGE_PEAK_LOOP(Name, V, TARGET)                                                               \
  TARGET __attribute__((noinline)) void Name(float* out) {                                            \
    const float one = 1.0f, small = 1e-30f;                                                           \
    const V::R a = V::Broadcast(&one), b = V::Broadcast(&small);                                      \
    V::R sum[kChains];                                                                                \
    _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) sum[i] = V::Broadcast(out + i);        \
    for (int64_t step = 0; step < kPeakSteps; ++step) {                                               \
      _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) sum[i] = V::Fma(a, b, sum[i]);       \
      asm volatile("" : "+m"(*out));                                                                  \
    }                                                                                                 \
    _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) V::Store(out + V::kLanes * i, sum[i]); \
  }
SAGE_PEAK_LOOP(PeakPlain, lanes::plain::F32, )
SAGE_PEAK_LOOP(PeakAvx2, lanes::avx2::F32, SAGE_TARGET_AVX2)
SAGE_PEAK_LOOP(PeakAvx512, lanes::avx512::F32, SAGE_TARGET_AVX512)

// One thread is timed by its own processor time, so that other load on the machine counts less.
bool processor_time = true;

double Now() {
  timespec now;
  clock_gettime(processor_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Best(int runs, const std::function<void()>& body) {
  double best = 1e30;
  for (int i = 0; i < runs; ++i) {
    const double start = Now();
    body();
    best = std::min(best, Now() - start);
  }
  return best;
}

double PeakFlops(ThreadPool& threads) {
  const CpuFeatures& cpu = HostCpu();
  const int lanes = cpu.avx512 ? 16 : cpu.avx2 ? 8 : 4;
  const double seconds = Best(7, [&] {
    threads.Run(threads.size(), [&](int64_t, int) {
      float out[16 * kChains] = {};
      for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(i + 1);
      cpu.avx512 ? PeakAvx512(out) : cpu.avx2 ? PeakAvx2(out) : PeakPlain(out);
    });
  });
  return 2.0 * lanes * kChains * kPeakSteps * threads.size() / seconds;
}

std::vector<float> Values(int64_t count) {
  std::vector<float> out(count);
  uint32_t state = 1;
  for (float& v : out) v = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
  return out;
}

void Print(const char* what, int64_t n, double flops, double seconds, double peak) {
  std::printf("%-28s n=%-6lld %9.3f ms  %8.1f GFLOP/s  %5.1f %% of peak\n", what, static_cast<long long>(n),
              seconds * 1e3, flops / seconds * 1e-9, flops / seconds / peak * 100);
}

void BenchGptq(int64_t n, double peak, ThreadPool& threads) {
  const int64_t M = 2 * n;
  const std::vector<float> weight = Values(n * n), x = Values(M * n);
  GramSum sum(n);
  sum.Add(x.data(), M, threads);
  const std::vector<float> gram = sum.Matrix<float>(threads);
  const double cube = static_cast<double>(n) * n * n;
  for (const bool f64 : {false, true}) {
    GptqOptions options;
    options.grid.group_size = 64;
    options.f64 = f64;
    const double seconds = Best(n > 2000 ? 2 : 7, [&] {
      if (!SolveGptq(weight, n, n, gram, {}, options, threads).ok()) std::abort();
    });
    Print(f64 ? "gptq 4 bits g64 f64" : "gptq 4 bits g64 f32", n, cube * (2.0 / 3 + 1), seconds, f64 ? peak / 2 : peak);
  }
}

void BenchSize(int64_t n, double peak, ThreadPool& threads) {
  const std::vector<float> a = Values(n * n), b = Values(n * n);
  std::vector<float> c(n * n);
  const double cube = static_cast<double>(n) * n * n;
  const int runs = n > 2000 ? 3 : 15;
  Print("gemm f32", n, 2 * cube,
        Best(runs, [&] { MultiplyTransposed(a.data(), b.data(), n, n, n, c.data(), threads); }), peak);
  const int64_t M = 2048;
  const std::vector<float> x = Values(M * n);
  GramSum sum(n);
  Print("gram f32+f64, 2048 tokens", n, static_cast<double>(M) * n * (n + 1),
        Best(runs, [&] { sum.Add(x.data(), M, threads); }), peak);
  std::vector<float> h = sum.Matrix<float>(threads);
  for (int64_t i = 0; i < n; ++i) h[i * n + i] += 1000.0f;
  std::vector<float> u(n * n);
  double seconds = 1e30;
  for (int i = 0; i < runs; ++i) {
    std::vector<float> copy = h;
    seconds = std::min(seconds, Best(1, [&] {
                         if (FactorUpper(copy.data(), n, u.data(), 0, threads) >= 0) std::abort();
                       }));
  }
  Print("factor and inverse f32", n, cube * 2 / 3, seconds, peak);
  const std::vector<double> h64(h.begin(), h.end());
  std::vector<double> u64(n * n);
  seconds = 1e30;
  for (int i = 0; i < runs; ++i) {
    std::vector<double> copy = h64;
    seconds = std::min(seconds, Best(1, [&] {
                         if (FactorUpper(copy.data(), n, u64.data(), 0, threads) >= 0) std::abort();
                       }));
  }
  Print("factor and inverse f64", n, cube * 2 / 3, seconds, peak / 2);
}

}  // namespace
}  // namespace sage

int main(int argc, char** argv) {
  for (int size = 1; size <= (argc > 1 ? std::atoi(argv[1]) : 2); ++size) {
    sage::ThreadPool threads(size);
    sage::processor_time = size == 1;
    const double peak = sage::PeakFlops(threads);
    std::printf("%d thread(s), tier %s, peak f32 %.1f GFLOP/s (f64: half)\n", size,
                std::string(sage::HostGemmTier().name).c_str(), peak * 1e-9);
    for (const int64_t n : {576, 1536, 4096}) {
      sage::BenchSize(n, peak, threads);
      sage::BenchGptq(n, peak, threads);
    }
  }
  return 0;
}
