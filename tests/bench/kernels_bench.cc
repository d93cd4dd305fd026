// Measures every linear kernel of the cpu backend in every tier this machine has, at the shapes of real models: M = 1
// as bytes a second against a plain read of as many bytes, larger M as operations a second against the tier's own peak.
//
// Floors: M = 1 moves each weight byte once (the read probe); M rows do 2 M N K operations (the probe of the units that
// the activations run on: int16, int8 or f32). Probes of the same length run before and after every pass, so that a
// share compares one moment with itself. Weights rotate over `--mb` megabytes for M < 64, so no cache holds them. The
// hash is of row 0: equal for every tier and M of one layer.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/tiers.h"
#include "engine/tensor/float_convert.h"

namespace sage::cpu {
namespace {

struct LayerShape {
  const char* model;
  int64_t N, K;
};
constexpr LayerShape kShapes[] = {{"135M", 1536, 576}, {"135M", 576, 1536}, {"135M", 576, 576},   {"135M", 49152, 576},
                                  {"0.5B", 4864, 896}, {"0.5B", 896, 4864}, {"1.5B", 8960, 1536}, {"1.5B", 1536, 8960},
                                  {"7B", 11008, 4096}, {"7B", 4096, 11008}};

struct Options {
  std::string models = "135M,1.5B", strategies, tiers;
  std::vector<int64_t> rows = {1, 16, 512};
  int threads = 1;
  double ms = 40;
  int64_t mb = 96;
};

// With one thread its CPU time, which other programs on the machine disturb less; else the clock.
double Now(int threads) {
  if (threads == 1) {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// True when the filter is empty or one of its words is part of `name`.
bool Wanted(const std::string& filter, const std::string& name) {
  if (filter.empty()) return true;
  for (const auto word : absl::StrSplit(filter, ',')) {
    if (name.find(std::string(word)) != std::string::npos) return true;
  }
  return false;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

uint64_t Hash(const float* values, int64_t count) {
  uint64_t hash = 1469598103934665603u;
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);
  for (int64_t i = 0; i < count * 4; ++i) hash = (hash ^ bytes[i]) * 1099511628211u;
  return hash;
}

// Random weights of one layer in the canonical form of a strategy.
class Source {
 public:
  Source(int64_t N, int64_t K) : N_(N), K_(K), random_(11) {
    bytes_.resize(static_cast<size_t>(N * K * 4));
    for (size_t i = 0; i + 4 <= bytes_.size(); i += 4) {
      const auto word = static_cast<uint32_t>(random_());
      std::memcpy(bytes_.data() + i, &word, 4);
    }
  }

  LinearWeight Dense(DType dtype) {
    auto tensor = std::make_shared<Tensor>(*Tensor::Allocate(dtype, {N_, K_}));
    for (int64_t i = 0; i < N_ * K_; ++i) {
      const float value = static_cast<float>(static_cast<int8_t>(bytes_[static_cast<size_t>(i)])) / 128.0f;
      if (dtype == DType::kF32) {
        tensor->as<float>()[i] = value;
      } else {
        tensor->as<uint16_t>()[i] = dtype == DType::kF16 ? FloatToF16(value) : FloatToBF16(value);
      }
    }
    LinearWeight out = Empty();
    out.dense.values = tensor->view();
    out.keep_alive = tensor;
    return out;
  }

  LinearWeight Integer(int bits, int64_t group, bool eight_bit_activations) {
    LinearWeight out = Empty();
    IntegerWeight& w = out.integer;
    w.bits = bits;
    w.group_size = group;
    w.codes.resize(static_cast<size_t>(N_ * K_));
    for (size_t i = 0; i < w.codes.size(); ++i) {
      w.codes[i] = static_cast<int8_t>(static_cast<int8_t>(bytes_[i]) >> (8 - bits));
    }
    w.scale = Scales(N_ * (K_ / group));
    w.activations.eight_bits = eight_bit_activations;
    return out;
  }

  LinearWeight Blocks(const std::string& type) {
    const int64_t block = type == "q8_0" ? 34 : type == "q4_1" ? 20 : 18, count = N_ * K_ / 32;
    auto tensor = std::make_shared<Tensor>(*Tensor::Allocate(DType::kU8, {count * block}));
    std::memcpy(tensor->as<uint8_t>(), bytes_.data(), static_cast<size_t>(count * block));
    for (int64_t b = 0; b < count; ++b) {
      const uint16_t d = FloatToF16(0.01f + 0.001f * static_cast<float>(b % 7));
      std::memcpy(tensor->as<uint8_t>() + b * block, &d, 2);
      if (type == "q4_1") std::memcpy(tensor->as<uint8_t>() + b * block + 2, &d, 2);
    }
    LinearWeight out = Empty();
    out.blocks = {type, tensor->as<uint8_t>(), tensor->bytes()};
    out.keep_alive = tensor;
    return out;
  }

  LinearWeight Floats(FloatCodeWeight::Kind kind, int64_t block, bool flat, bool eight_bit_activations) {
    LinearWeight out = Empty();
    FloatCodeWeight& w = out.floats;
    w.kind = kind;
    w.codes = bytes_.data();
    w.bytes = static_cast<size_t>(N_ * K_);
    if (kind == FloatCodeWeight::Kind::kTable16) {
      w.bytes /= 2;
      for (int i = 0; i < 16; ++i) w.table.push_back(static_cast<float>(i - 8) / 8.0f);
    } else {
      for (size_t i = 0; i < w.bytes; ++i) bytes_[i] &= 0xbf;  // finite, magnitudes below 2
    }
    (flat ? w.flat_block : w.block_columns) = block;
    w.scale = Scales(flat ? N_ * K_ / block : N_ * ((K_ + block - 1) / block));
    if (eight_bit_activations) w.activations.kind = FloatActivations::Kind::kDynamic;
    return out;
  }

 private:
  LinearWeight Empty() const {
    LinearWeight out;
    out.N = N_;
    out.K = K_;
    return out;
  }
  static std::vector<float> Scales(int64_t count) {
    std::vector<float> out(static_cast<size_t>(count));
    for (size_t i = 0; i < out.size(); ++i) out[i] = 0.001f * static_cast<float>(1 + i % 13);
    return out;
  }

  int64_t N_, K_;
  std::mt19937 random_;
  std::vector<uint8_t> bytes_;
};

using Bound = absl::StatusOr<std::unique_ptr<BoundLinear>>;
struct Strategy {
  const char* name;
  Probe peak;
  Bound (*bind)(Source& source, int64_t K, const TierFns& tier, ThreadPool& threads);
};

int64_t GroupOf(int64_t K) { return K % 128 == 0 ? 128 : 64; }

template <DType kDType>
Bound DenseOf(Source& source, int64_t, const TierFns& tier, ThreadPool&) {
  return BindDense(source.Dense(kDType), tier, tier.name);
}
template <int kBits, bool kEight>
Bound IntegerOf(Source& source, int64_t K, const TierFns& tier, ThreadPool& threads) {
  const int64_t group = kBits == 8 && kEight ? K : GroupOf(K);
  return BindPanels(source.Integer(kBits, group, kEight), kBits == 4, threads, tier, tier.name);
}
template <int kType>
Bound BlocksOf(Source& source, int64_t, const TierFns& tier, ThreadPool& threads) {
  return BindBlocks(source.Blocks(kType == 0 ? "q4_0" : kType == 1 ? "q4_1" : "q8_0"), threads, tier, tier.name);
}
template <FloatCodeWeight::Kind kKind, int kBlock, bool kFlat, bool kEight>
Bound FloatsOf(Source& source, int64_t K, const TierFns& tier, ThreadPool& threads) {
  return BindFloatPanels(source.Floats(kKind, kBlock == 0 ? K : kBlock, kFlat, kEight), threads, tier, tier.name);
}
constexpr auto kE4M3 = FloatCodeWeight::Kind::kE4M3;
constexpr auto kTable16 = FloatCodeWeight::Kind::kTable16;
constexpr Strategy kStrategies[] = {
    {"f32", Probe::kF32, DenseOf<DType::kF32>},
    {"f16", Probe::kF32, DenseOf<DType::kF16>},
    {"bf16", Probe::kF32, DenseOf<DType::kBF16>},
    {"int8_w8a16", Probe::kInt16, IntegerOf<8, false>},
    {"int4_w4a16", Probe::kInt16, IntegerOf<4, false>},
    {"int8_w8a8", Probe::kInt8, IntegerOf<8, true>},
    {"int4_w4a8", Probe::kInt8, IntegerOf<4, true>},
    {"gguf_q4_0", Probe::kInt16, BlocksOf<0>},
    {"gguf_q4_1", Probe::kInt16, BlocksOf<1>},
    {"gguf_q8_0", Probe::kInt16, BlocksOf<2>},
    {"fp8_w8a16", Probe::kF32, FloatsOf<kE4M3, 0, false, false>},
    {"fp8_w8a8", Probe::kF32, FloatsOf<kE4M3, 0, false, true>},
    {"nf4_w4a16", Probe::kF32, FloatsOf<kTable16, 64, true, false>},
    {"mxfp4_w4a16", Probe::kF32, FloatsOf<kTable16, 32, false, false>},
    {"nvfp4_w4a16", Probe::kF32, FloatsOf<kTable16, 16, false, false>},
};
const char* PeakName(Probe probe) {
  return probe == Probe::kF32 ? "f32" : probe == Probe::kInt16 ? "int16" : probe == Probe::kInt8 ? "int8" : "read";
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), pool_(options.threads) {
    ctx_.threads = &pool_;
    ctx_.activations = &cache_;
    probe_bytes_ = (options.mb << 20) / options.threads;
    for (int t = 0; t < options.threads; ++t) {
      probe_.push_back(*Tensor::Allocate(DType::kU8, {probe_bytes_}));
      std::memset(probe_.back().as<uint8_t>(), 3, static_cast<size_t>(probe_bytes_));
    }
  }

  void RunLayer(const LayerShape& shape, const Strategy& strategy, const TierFns& tier, Source& source) {
    std::vector<std::unique_ptr<BoundLinear>> copies;
    size_t bytes = 0;
    const bool rotate = *std::min_element(options_.rows.begin(), options_.rows.end()) < 64;
    do {
      Bound bound = strategy.bind(source, shape.K, tier, pool_);
      if (!bound.ok()) {
        std::fprintf(stderr, "%s: %s\n", strategy.name, std::string(bound.status().message()).c_str());
        return;
      }
      bytes += (*bound)->weight_bytes();
      copies.push_back(*std::move(bound));
    } while (rotate && bytes < static_cast<size_t>(options_.mb << 20) && copies.size() < 400);
    for (const int64_t M : options_.rows) Measure(shape, strategy, tier, copies, M);
  }

 private:
  // Bytes or operations a second of a probe on every thread, over at least `least` seconds.
  double RunProbe(const TierFns& tier, Probe probe, double least) {
    std::vector<float> sinks(static_cast<size_t>(options_.threads) * 16);
    std::vector<int64_t> done(static_cast<size_t>(options_.threads));
    const double begin = Now(options_.threads);
    double seconds = 0, total = 0;
    do {
      pool_.Run(options_.threads, [&](int64_t t, int) {
        const auto at = static_cast<size_t>(t);
        done[at] = tier.probe(probe, probe_[at].as<uint8_t>(), probe_bytes_, &sinks[at * 16]);
      });
      for (const int64_t d : done) total += static_cast<double>(d);
      seconds = Now(options_.threads) - begin;
    } while (seconds < least);
    return total / seconds;
  }

  double Pass(const std::vector<std::unique_ptr<BoundLinear>>& copies, size_t used, int64_t M) {
    const BoundLinear& first = *copies[0];
    const double begin = Now(options_.threads);
    for (size_t i = 0; i < used; ++i) {
      cache_.Clear();
      copies[i]->Forward(ctx_, {ctx_.NewValue(), x_.as<float>(), M, first.K(), first.K()}, out_.data(), first.N());
    }
    return (Now(options_.threads) - begin) / static_cast<double>(used);
  }

  void Measure(const LayerShape& shape, const Strategy& strategy, const TierFns& tier,
               const std::vector<std::unique_ptr<BoundLinear>>& copies, int64_t M) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    x_ = *Tensor::Allocate(DType::kF32, {M, shape.K});  // aligned, as the engine's buffers are
    for (int64_t i = 0; i < M * shape.K; ++i) x_.as<float>()[i] = normal(random);
    out_.assign(static_cast<size_t>(M * shape.N), 0.0f);
    const size_t used = M < 64 ? copies.size() : 1;
    const double bytes = static_cast<double>(copies[0]->weight_bytes());
    const double ops = 2.0 * static_cast<double>(M * shape.N) * static_cast<double>(shape.K);
    std::vector<double> seconds, of_read, of_peak;
    const auto begin = std::chrono::steady_clock::now();
    do {  // probe, product, probe: what else runs on the machine slows all three
      const double pass = seconds.empty() ? 0 : seconds.back() * static_cast<double>(used) / 2;
      const double read = M < 64 ? RunProbe(tier, Probe::kRead, 0) : 0, peak = RunProbe(tier, strategy.peak, pass);
      seconds.push_back(Pass(copies, used, M));
      const double again = RunProbe(tier, strategy.peak, pass);
      if (read > 0) of_read.push_back(bytes / seconds.back() / read);
      of_peak.push_back(ops / seconds.back() / (peak + again) * 2);
    } while (seconds.size() < 4 ||
             std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < options_.ms * 1e-3);
    const double best = *std::min_element(seconds.begin(), seconds.end());
    std::printf("%-5s %5ld x %-5ld %-12s %-8s %4ld %10.1f %6.2f %7.2f %6.2f %8.1f %-5s %6.2f  %016lx\n", shape.model,
                static_cast<long>(shape.N), static_cast<long>(shape.K), strategy.name, tier.name, static_cast<long>(M),
                best * 1e6, bytes * 8 / static_cast<double>(shape.N * shape.K), bytes / best * 1e-9, Median(of_read),
                ops / best * 1e-9, PeakName(strategy.peak), Median(of_peak),
                static_cast<unsigned long>(Hash(out_.data(), shape.N)));
    std::fflush(stdout);
  }

  Options options_;
  ThreadPool pool_;
  ActivationCache cache_;
  StepContext ctx_;
  int64_t probe_bytes_ = 0;
  std::vector<Tensor> probe_;
  Tensor x_;
  std::vector<float> out_;
};

int Usage() {
  std::fprintf(stderr,
               "usage: kernels_bench [--models 135M,0.5B,1.5B,7B] [--strategies WORDS] [--tiers WORDS] [--m 1,16,512]\n"
               "                     [--threads 1] [--ms 40] [--mb 96]\n"
               "WORDS are parts of names, separated by commas; --ms is the least time of a figure.\n");
  return 2;
}

bool Parse(int argc, char** argv, Options* out) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--models") {
      out->models = value;
    } else if (flag == "--strategies") {
      out->strategies = value;
    } else if (flag == "--tiers") {
      out->tiers = value;
    } else if (flag == "--m") {
      out->rows.clear();
      for (const auto word : absl::StrSplit(value, ',')) out->rows.push_back(std::atoll(std::string(word).c_str()));
    } else if (flag == "--threads") {
      out->threads = std::atoi(value.c_str());
    } else if (flag == "--ms") {
      out->ms = std::atof(value.c_str());
    } else if (flag == "--mb") {
      out->mb = std::atoll(value.c_str());
    } else {
      return false;
    }
  }
  for (const int64_t M : out->rows) {
    if (M < 1 || M > 65536) return false;
  }
  return argc % 2 == 1 && out->threads >= 1 && out->threads <= 1024 && out->mb >= 1 && out->mb <= 65536;
}

int Main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, &options)) return Usage();
  Bench bench(options);
  std::printf("%d threads; times: best of the rounds in %.0f ms; shares: median over the rounds\n", options.threads,
              options.ms);
  std::printf("%-5s %5s   %-5s %-12s %-8s %4s %10s %6s %7s %6s %8s %-5s %6s  %s\n", "model", "N", "K", "strategy",
              "tier", "M", "us", "bits/w", "GB/s", "/read", "Gop/s", "peak", "/peak", "hash of row 0");
  for (const LayerShape& shape : kShapes) {
    if (!Wanted(options.models, shape.model)) continue;
    for (const Strategy& strategy : kStrategies) {
      if (!Wanted(options.strategies, strategy.name)) continue;
      Source source(shape.N, shape.K);
      for (const TierFns* tier : {&kGenericTier, &kAvx2Tier, &kAvx512Tier}) {
        if (!Wanted(options.tiers, tier->name) || !RefuseTier(tier->name, HostCpu()).empty()) continue;
        bench.RunLayer(shape, strategy, *tier, source);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace sage::cpu

int main(int argc, char** argv) { return sage::cpu::Main(argc, argv); }
