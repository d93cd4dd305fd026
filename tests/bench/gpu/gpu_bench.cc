// Measures the CUDA backend's linear layers and attention on the device at hand, as shares of what it can do at that
// moment.
//
// First the copy rate, the floor of everything that reads weights or pages. Then each layer shape of Qwen2.5-7B and
// Llama-3-8B at M = 1..4096: microseconds, share of the floor (weight bytes at the copy rate), ratio to cuBLASLt bf16
// of the same shape and M in the same run. Then decode attention by context and batch: bytes of pages at the copy rate.
// Weights rotate over more than the second level cache holds; values are random (zeros run faster). `--quick` takes
// fewer.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "engine/api/kv_strategy.h"
#include "engine/api/linear_strategy.h"

namespace sage {
namespace {

struct LayerShape {
  const char* name;
  int64_t N, K;
};
constexpr LayerShape kShapes[] = {{"qwen2.5-7b qkv", 4608, 3584},      {"qwen2.5-7b o", 3584, 3584},
                                  {"qwen2.5-7b gate_up", 37888, 3584}, {"qwen2.5-7b down", 3584, 18944},
                                  {"llama-3-8b qkv", 6144, 4096},      {"llama-3-8b o", 4096, 4096},
                                  {"llama-3-8b gate_up", 28672, 4096}, {"llama-3-8b down", 4096, 14336}};
constexpr int64_t kRotate = int64_t{256} << 20;

struct Bench {
  std::unique_ptr<Backend> backend;
  ThreadPool threads{8};
  ActivationCache cache;
  StepContext ctx;
  double copy_rate = 0;  // bytes a second, read and write together
  bool quick = false;

  // Median microseconds of `work`, which enqueues; run often enough to outlast the clock.
  double Time(int rounds, const std::function<void(int)>& work) {
    std::vector<double> samples;
    for (int i = 0; i < 3; ++i) work(i);
    for (int sample = 0; sample < 7; ++sample) {
      // The backend's stream is its own: waiting before and after makes a host clock around many rounds fair.
      backend->memory().Wait();
      const auto from = std::chrono::steady_clock::now();
      for (int i = 0; i < rounds; ++i) work(i);
      backend->memory().Wait();
      samples.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - from).count() /
                        rounds);
    }
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2];
  }
};

std::vector<float> Normal(int64_t count, float spread) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, spread);
  // A period that no tile shares is as good as all of it, and quicker to make.
  std::vector<float> base(65537), out(static_cast<size_t>(count));
  for (float& v : base) v = normal(random);
  for (size_t i = 0; i < out.size(); ++i) out[i] = base[i % base.size()];
  return out;
}

DeviceBuffer Place(Bench& bench, const std::vector<float>& values) {
  DeviceBuffer buffer = bench.backend->memory().Allocate(values.size() * sizeof(float)).value();
  bench.backend->memory().Upload(buffer.as<void>(), values.data(), buffer.bytes());
  return buffer;
}

void MeasureCopy(Bench& bench) {
  DeviceMemory& memory = bench.backend->memory();
  const size_t bytes = size_t{1} << 30;
  const DeviceBuffer from = memory.Allocate(bytes).value(), to = memory.Allocate(bytes).value();
  const double us = bench.Time(10, [&](int) { memory.Copy(to.as<void>(), from.as<void>(), bytes); });
  bench.copy_rate = 2.0 * static_cast<double>(bytes) / us * 1e6;
  std::printf("%s, copy %.0f GB/s\n", bench.backend->capability().c_str(), bench.copy_rate / 1e9);
}

using Layers = std::vector<std::unique_ptr<BoundLinear>>;

// As many copies of a layer as it takes to be out of the cache; empty when the device has no kernel.
Layers BindCopies(Bench& bench, const LinearStrategyDef& def, const LayerShape& shape) {
  Layers layers;
  const std::vector<float> weight = Normal(shape.N * shape.K, 0.02f);
  for (const int group : {128, -1}) {
    LinearSpec spec;
    spec.strategy = std::string(def.name);
    spec.group_size = group;
    if (def.quantize == nullptr || !def.check(spec, shape.N, shape.K).ok()) continue;
    auto stored =
        def.quantize({DType::kF32, {shape.N, shape.K}, weight.data(), weight.size() * 4}, spec, {}, bench.threads);
    if (!stored.ok()) continue;
    const auto keep = std::make_shared<StoredLinear>(*std::move(stored));
    for (int64_t bytes = 0; bytes < kRotate;) {
      auto bound = def.bind(*keep, keep, *bench.backend, Priority::kLatency, bench.threads);
      if (!bound.ok()) return {};
      bytes += static_cast<int64_t>((*bound)->weight_bytes());
      layers.push_back(*std::move(bound));
    }
    return layers;
  }
  return layers;
}

void MeasureLinears(Bench& bench) {
  const std::vector<int64_t> rows =
      bench.quick ? std::vector<int64_t>{1, 16, 512} : std::vector<int64_t>{1, 8, 16, 64, 512, 4096};
  std::printf("| layer | kernel | M | us | share of floor | over bf16 |\n|---|---|---|---|---|---|\n");
  for (const LayerShape& shape : kShapes) {
    std::vector<double> bf16(rows.size(), 0.0);
    const DeviceBuffer x = Place(bench, Normal(rows.back() * shape.K, 1.0f));
    const DeviceBuffer out = bench.backend->memory().Allocate(static_cast<size_t>(rows.back() * shape.N) * 4).value();
    std::vector<const LinearStrategyDef*> order = {*FindLinearStrategy("bf16")};
    for (const LinearStrategyDef* def : LinearStrategies()) {
      if (def->name != "bf16" && def->name != "f16" && def->name != "f32") order.push_back(def);
    }
    for (const LinearStrategyDef* def : order) {
      const Layers layers = BindCopies(bench, *def, shape);
      for (size_t r = 0; r < rows.size() && !layers.empty(); ++r) {
        const double us = bench.Time(rows[r] > 512 ? 10 : 100, [&](int i) {
          bench.cache.Clear();
          const StepValue value{bench.ctx.NewValue(), x.as<float>(), rows[r], shape.K, shape.K};
          layers[static_cast<size_t>(i) % layers.size()]->Forward(bench.ctx, value, out.as<float>(), shape.N);
        });
        if (def->name == "bf16") bf16[r] = us;
        const double floor = static_cast<double>(layers[0]->weight_bytes()) / bench.copy_rate * 1e6;
        std::printf("| %s | %s | %ld | %.1f | %.2f | %.2f |\n", shape.name, layers[0]->kernel().c_str(), rows[r], us,
                    floor / us, bf16[r] / us);
      }
    }
  }
}

void MeasureAttention(Bench& bench) {
  constexpr int kH = 28, kKH = 4, kD = 128, kTokens = 16;
  std::printf("| attention | B | context | us | share of floor |\n|---|---|---|---|---|\n");
  DeviceMemory& memory = bench.backend->memory();
  for (const char* strategy : {"bf16", "fp8_e4m3", "int8_per_token"}) {
    const KvLayout layout{kKH, kD, kTokens, kH};
    const auto kernel = bench.backend->BindKv(strategy, layout);
    if (!kernel.ok()) continue;
    for (const auto& [B, context] : {std::pair<int64_t, int64_t>{1, 1024}, {1, 8192}, {16, 8192}, {64, 4096}}) {
      const int64_t pages = context / kTokens;
      const size_t bytes = static_cast<size_t>(B * pages) * (*kernel)->page_bytes();
      const DeviceBuffer arena = memory.Allocate(bytes).value();
      std::vector<int32_t> table(static_cast<size_t>(B * pages));
      for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
      std::shuffle(table.begin(), table.end(), std::mt19937(3));
      const DeviceBuffer q = Place(bench, Normal(B * kH * kD, 1.0f)), out = Place(bench, Normal(B * kH * kD, 1.0f));
      const DeviceBuffer kv = Place(bench, Normal(context * kKH * kD, 1.0f));
      std::vector<SequenceSlice> slices;
      for (int64_t b = 0; b < B; ++b) {
        const SequenceSlice whole[] = {{0, context, 0, context, table.data() + b * pages}};
        (*kernel)->Store(bench.ctx, arena.as<uint8_t>(), kv.as<float>(), kKH * kD, kv.as<float>(), kKH * kD,
                         absl::MakeConstSpan(whole));
        slices.push_back({b, 1, context - 1, context, table.data() + b * pages});
      }
      AttentionArgs args{kH, layout, 0.088f, 0, q.as<float>(), kH * kD, out.as<float>(), kH * kD, {}};
      args.sequences = bench.backend->Place(0, slices, layout).value();
      const double us = bench.Time(100, [&](int) { (*kernel)->Attend(bench.ctx, arena.as<uint8_t>(), args); });
      std::printf("| %s | %ld | %ld | %.1f | %.2f |\n", (*kernel)->kernel().c_str(), B, context, us,
                  static_cast<double>(bytes) / bench.copy_rate * 1e6 / us);
    }
  }
}

int Run(int argc, char** argv) {
  Bench bench;
  bench.quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  auto backend = OpenBackend("cuda");
  if (!backend.ok()) {
    std::printf("device unavailable: %s\n", std::string(backend.status().message()).c_str());
    return 0;
  }
  bench.backend = *std::move(backend);
  bench.cache.UseMemory(bench.backend->memory());
  bench.ctx.threads = &bench.threads;
  bench.ctx.memory = &bench.backend->memory();
  bench.ctx.activations = &bench.cache;
  MeasureCopy(bench);
  MeasureLinears(bench);
  MeasureAttention(bench);
  const absl::Status status = bench.backend->memory().Download(nullptr, nullptr, 0);
  if (!status.ok()) std::printf("%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace sage

int main(int argc, char** argv) { return sage::Run(argc, argv); }
