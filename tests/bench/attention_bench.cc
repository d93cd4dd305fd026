// Measures attention over every KV strategy of the cpu backend: GB/s of KV bytes for decode at depth 2048 and Gop/s for
// a prefill of 512 tokens. Prints the best of interleaved rounds, the ratio to bf16 in the same run and a hash of the
// output.
//
// usage: attention_bench [threads] [rounds]
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "engine/api/kv_strategy.h"

namespace sage {
namespace {

struct Shape {
  const char* name;
  int H, KH, D, L;
};
// Layers as in the model: a step walks through all of them, so no cache holds the keys of the next one.
constexpr Shape kShapes[] = {{"135M", 9, 3, 64, 30}, {"1.5B", 12, 2, 128, 28}};
constexpr int kPageTokens = 16;
constexpr int64_t kDepth = 2048, kPrefill = 512;

// With one thread its CPU time, which other programs on the machine disturb less; else the clock.
double Now(const StepContext& ctx) {
  if (ctx.threads->size() == 1) {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of the rounds: what other programs do on the machine only ever adds time.
double Best(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

uint64_t Hash(const std::vector<float>& values) {
  uint64_t hash = 1469598103934665603u;
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 1099511628211u;
  return hash;
}

// One strategy on one shape: pages of every layer, filled with the same normal values.
struct Contestant {
  const KvStrategyDef* def;
  std::unique_ptr<KvKernel> kernel;
  std::vector<Tensor> layers;
  std::vector<int32_t> pages;
  std::vector<float> q, out;
  std::vector<double> decode_seconds, prefill_seconds, store_seconds;
  AttentionArgs args;

  static absl::StatusOr<std::unique_ptr<Contestant>> Make(const KvStrategyDef* def, const Shape& shape,
                                                          const Backend& backend, StepContext& ctx) {
    auto out = std::make_unique<Contestant>();
    out->def = def;
    out->args.H = shape.H;
    out->args.layout = {shape.KH, shape.D, kPageTokens};
    absl::StatusOr<std::unique_ptr<KvKernel>> kernel = def->bind(out->args.layout, backend);
    if (!kernel.ok()) return kernel.status();
    out->kernel = *std::move(kernel);
    const int64_t pages = kDepth / kPageTokens;
    for (int64_t p = 0; p < pages; ++p) out->pages.push_back(static_cast<int32_t>((p * 37 + 5) % pages));
    const int64_t width = int64_t{shape.KH} * shape.D;
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> k(static_cast<size_t>(kDepth * width)), v(k.size());
    for (float& x : k) x = normal(random);
    for (float& x : v) x = normal(random);
    const SequenceSlice all{0, kDepth, 0, kDepth, out->pages.data()};
    for (int l = 0; l < shape.L; ++l) {
      absl::StatusOr<Tensor> arena =
          Tensor::Allocate(DType::kU8, {pages * static_cast<int64_t>(out->kernel->page_bytes())});
      if (!arena.ok()) return arena.status();
      out->layers.push_back(*std::move(arena));
      const double begin = Now(ctx);
      out->kernel->Store(ctx, out->layers.back().as<uint8_t>(), k.data(), width, v.data(), width,
                         absl::MakeConstSpan(&all, 1));
      out->store_seconds.push_back(Now(ctx) - begin);
    }
    out->q.resize(static_cast<size_t>(kPrefill * shape.H * shape.D));
    for (float& x : out->q) x = normal(random);
    out->out.resize(out->q.size());
    out->args.scale = 1.0f / std::sqrt(static_cast<float>(shape.D));
    out->args.q = out->q.data();
    out->args.out = out->out.data();
    out->args.q_stride = out->args.out_stride = int64_t{shape.H} * shape.D;
    return out;
  }

  double Attend(StepContext& ctx, int64_t rows, int64_t context) {
    const SequenceSlice slice{0, rows, context, kDepth, pages.data()};
    args.sequences = absl::MakeConstSpan(&slice, 1);
    const double begin = Now(ctx);
    for (Tensor& layer : layers) kernel->Attend(ctx, layer.as<uint8_t>(), args);
    return (Now(ctx) - begin) / static_cast<double>(layers.size());
  }
};

void Print(const Shape& shape, std::vector<std::unique_ptr<Contestant>>& all, StepContext& ctx) {
  const Contestant* bf16 = nullptr;
  for (const auto& c : all) {
    if (c->def->name == "bf16") bf16 = c.get();
  }
  for (const auto& c : all) {
    const double decode = Best(c->decode_seconds), prefill = Best(c->prefill_seconds);
    const double bytes = static_cast<double>(kDepth / kPageTokens) * static_cast<double>(c->kernel->page_bytes());
    const double ops = 4.0 * shape.H * shape.D * (static_cast<double>(kPrefill) * (kPrefill + 1) / 2);
    c->Attend(ctx, 1, kDepth - 1);
    const uint64_t hash = Hash(c->out);
    std::printf("%-5s %-18s %9.1f %8.2f %8.2f %10.1f %8.2f %9.2f  %016lx  %s\n", shape.name,
                std::string(c->def->name).c_str(), decode * 1e6, bytes / decode * 1e-9,
                bf16 == nullptr ? 0.0 : Best(bf16->decode_seconds) / decode, ops / prefill * 1e-9,
                bf16 == nullptr ? 0.0 : Best(bf16->prefill_seconds) / prefill, Best(c->store_seconds) / kDepth * 1e6,
                static_cast<unsigned long>(hash), c->kernel->kernel().c_str());
  }
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2, rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  if (threads < 1 || threads > 1024 || rounds < 1) {
    std::fprintf(stderr, "usage: attention_bench [threads] [rounds]\n");
    return 2;
  }
  ThreadPool pool(threads);
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &pool;
  ctx.activations = &cache;
  const absl::StatusOr<std::unique_ptr<Backend>> backend = OpenBackend("cpu");
  if (!backend.ok()) return 1;
  std::printf("%d threads, best of %d interleaved rounds; a layer each\n", threads, rounds);
  std::printf("%-5s %-18s %9s %8s %8s %10s %8s %9s  %-16s  %s\n", "shape", "kv", "decode us", "GB/s", "x bf16",
              "prefill Gop", "x bf16", "store us", "hash", "kernel");
  for (const Shape& shape : kShapes) {
    std::vector<std::unique_ptr<Contestant>> all;
    for (const KvStrategyDef* def : KvStrategies()) {
      auto made = Contestant::Make(def, shape, **backend, ctx);
      if (!made.ok()) {
        std::fprintf(stderr, "%s: %s\n", std::string(def->name).c_str(), std::string(made.status().message()).c_str());
        continue;
      }
      all.push_back(*std::move(made));
    }
    for (int r = 0; r < rounds; ++r) {
      for (const auto& c : all) c->decode_seconds.push_back(c->Attend(ctx, 1, kDepth - 1));
      for (const auto& c : all) c->prefill_seconds.push_back(c->Attend(ctx, kPrefill, 0));
    }
    Print(shape, all, ctx);
  }
  return 0;
}

}  // namespace
}  // namespace sage

int main(int argc, char** argv) { return sage::Main(argc, argv); }
