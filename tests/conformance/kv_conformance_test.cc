// Every KV strategy of the generated table on every backend: what is stored comes back within the strategy's bound, and
// attention over pages equals the naive f64 one over what was stored.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "engine/api/kv_strategy.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"

namespace sage {
namespace {

struct Case {
  int H, KH, D, page_tokens;
  int64_t context, rows, window;
};
constexpr Case kCases[] = {{4, 4, 64, 16, 0, 1, 0},    {9, 3, 64, 16, 0, 37, 0},    {8, 2, 128, 16, 45, 5, 0},
                           {4, 1, 32, 32, 70, 3, 20},  {8, 4, 8, 16, 5, 40, 0},     {14, 2, 80, 64, 300, 30, 0},
                           {2, 2, 33, 16, 511, 2, 0},  {12, 2, 128, 16, 700, 1, 0}, {6, 2, 64, 16, 250, 20, 270},
                           {16, 1, 48, 256, 0, 70, 9}, {3, 3, 16, 128, 255, 2, 1}};

// One head of one query over loaded K and V, [positions, KH * D] each.
std::vector<double> Naive(const Case& c, const float* q, int head, int64_t position, const std::vector<float>& k,
                          const std::vector<float>& v, double scale) {
  const int64_t width = static_cast<int64_t>(c.KH) * c.D, at = static_cast<int64_t>(head / (c.H / c.KH)) * c.D;
  const int64_t first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
  std::vector<double> weight, out(static_cast<size_t>(c.D), 0.0);
  double top = -1e300, sum = 0;
  for (int64_t j = first; j <= position; ++j) {
    double dot = 0;
    for (int64_t d = 0; d < c.D; ++d) dot += static_cast<double>(q[d]) * k[static_cast<size_t>(j * width + at + d)];
    weight.push_back(dot * scale);
    top = std::max(top, weight.back());
  }
  for (double& w : weight) sum += w = std::exp(w - top);
  for (int64_t j = first; j <= position; ++j) {
    for (int64_t d = 0; d < c.D; ++d) {
      out[static_cast<size_t>(d)] +=
          weight[static_cast<size_t>(j - first)] / sum * v[static_cast<size_t>(j * width + at + d)];
    }
  }
  return out;
}

// Pages of one strategy with one sequence in them.
struct Cache {
  std::unique_ptr<KvKernel> kernel;
  DeviceMemory& memory;
  DeviceBuffer arena;
  std::vector<int32_t> table;

  Cache(const KvStrategyDef& def, const Backend& backend, const Case& c, int64_t total, int32_t first_page = 0,
        int sink_pages = 0, std::shared_ptr<const KvLayerScales> scales = nullptr)
      : memory(backend.memory()) {
    const KvLayout layout{c.KH, c.D, c.page_tokens, c.H, sink_pages, std::move(scales)};
    kernel = def.bind(layout, backend).value();
    EXPECT_EQ(kernel->page_bytes(), def.page_bytes(layout));
    const int64_t pages = KvPageEntries((total + c.page_tokens - 1) / c.page_tokens, sink_pages);
    const std::vector<uint8_t> garbage(static_cast<size_t>(pages + 2 + first_page) * kernel->page_bytes(), 0xff);
    arena = memory.Allocate(garbage.size()).value();
    // What was there before must not matter.
    memory.Upload(arena.as<void>(), garbage.data(), garbage.size());
    // Out of order on purpose.
    for (int64_t p = 0; p < pages; ++p) table.push_back(first_page + static_cast<int32_t>(pages - p));
  }
  void Store(StepContext& ctx, const Case& c, const std::vector<float>& k, const std::vector<float>& v, int64_t begin,
             int64_t rows) {
    const int64_t width = static_cast<int64_t>(c.KH) * c.D;
    const SequenceSlice slice{0, rows, begin, begin + rows, table.data()};
    const DeviceBuffer k_rows = Place(k.data() + begin * width, rows * width);
    const DeviceBuffer v_rows = Place(v.data() + begin * width, rows * width);
    ctx.memory = &memory;
    kernel->Store(ctx, arena.as<uint8_t>(), k_rows.as<float>(), width, v_rows.as<float>(), width,
                  absl::MakeConstSpan(&slice, 1));
  }
  // Rows [begin, begin + rows) of q over what is stored; q and out hold all rows.
  void Attend(StepContext& ctx, const Case& c, const std::vector<float>& q, int64_t begin, int64_t rows,
              std::vector<float>* out) {
    const SequenceSlice slice{0, rows, begin, begin + rows, table.data()};
    AttentionArgs args;
    args.H = c.H;
    args.layout = {c.KH, c.D, c.page_tokens, c.H};
    args.scale = Scale(c);
    args.window = c.window;
    args.q_stride = args.out_stride = static_cast<int64_t>(c.H) * c.D;
    const DeviceBuffer q_rows = Place(q.data() + begin * args.q_stride, rows * args.q_stride);
    const DeviceBuffer out_rows = Place(q.data() + begin * args.q_stride, rows * args.q_stride);
    args.q = q_rows.as<float>();
    args.out = out_rows.as<float>();
    args.sequences = absl::MakeConstSpan(&slice, 1);
    ctx.memory = &memory;
    kernel->Attend(ctx, arena.as<uint8_t>(), args);
    const absl::Status status = memory.Download(out->data() + begin * args.q_stride, args.out, out_rows.bytes());
    EXPECT_TRUE(status.ok()) << status;
  }
  DeviceBuffer Place(const float* from, int64_t count) const {
    DeviceBuffer buffer = memory.Allocate(static_cast<size_t>(count) * sizeof(float)).value();
    memory.Upload(buffer.as<void>(), from, buffer.bytes());
    return buffer;
  }
  void Load(const Case& c, int64_t position, float* k, float* v) {
    kernel->Load(arena.as<uint8_t>(), table[static_cast<size_t>(position / c.page_tokens)],
                 static_cast<int>(position % c.page_tokens), k, v);
  }
  static float Scale(const Case& c) { return 1.0f / std::sqrt(static_cast<float>(c.D)); }
};

struct Threads {
  ThreadPool pool;
  ActivationCache cache;
  StepContext ctx;
  explicit Threads(int threads) : pool(threads) {
    ctx.threads = &pool;
    ctx.activations = &cache;
  }
};

double RelativeError(const std::vector<float>& got, const std::vector<double>& expected) {
  double error = 0, energy = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += std::pow(expected[i] - got[i], 2);
    energy += std::pow(expected[i], 2);
  }
  return std::sqrt(error / energy);
}

// Rows [context, context + rows) of naive attention over k and v.
std::vector<double> NaiveRows(const Case& c, const std::vector<float>& q, const std::vector<float>& k,
                              const std::vector<float>& v) {
  std::vector<double> out;
  for (int64_t m = c.context; m < c.context + c.rows; ++m) {
    for (int h = 0; h < c.H; ++h) {
      const float* const row = q.data() + (m * c.H + h) * c.D;
      const std::vector<double> one = Naive(c, row, h, m, k, v, Cache::Scale(c));
      out.insert(out.end(), one.begin(), one.end());
    }
  }
  return out;
}

void CheckCase(const KvStrategyDef& def, const Backend& backend, const Case& c, StepContext& ctx) {
  const int64_t total = c.context + c.rows, width = static_cast<int64_t>(c.KH) * c.D;
  Cache cache(def, backend, c, total);
  const std::vector<float> k = Normal(total * width, 1), v = Normal(total * width, 2), q = Normal(total * c.H * c.D, 3);
  if (c.context > 0) cache.Store(ctx, c, k, v, 0, c.context);
  cache.Store(ctx, c, k, v, c.context, c.rows);
  std::vector<float> k2(k.size()), v2(v.size()), out(q.size());
  for (int64_t p = 0; p < total; ++p) cache.Load(c, p, k2.data() + p * width, v2.data() + p * width);
  EXPECT_FALSE(!(RelativeError(k2, std::vector<double>(k.begin(), k.end())) <= def.tolerance));
  EXPECT_FALSE(!(RelativeError(v2, std::vector<double>(v.begin(), v.end())) <= def.tolerance));
  cache.Attend(ctx, c, q, c.context, c.rows, &out);
  out.erase(out.begin(), out.begin() + c.context * c.H * c.D);
  // Arithmetic is f32 over the stored values; a kernel may round probabilities to the stored precision.
  const double stored = RelativeError(out, NaiveRows(c, q, k2, v2)), exact = RelativeError(out, NaiveRows(c, q, k, v));
  // A device multiplies in halves of f32 values.
  EXPECT_FALSE(!(stored <= (backend.memory().is_host() ? 1e-5 : 5e-5) + def.tolerance)) << stored;
  // Against f32 keys and values: errors of K move weights by about |q.k| * tolerance, errors of V average out.
  EXPECT_FALSE(!(exact <= 5e-5 + 2 * def.tolerance)) << exact;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A prompt in random cuts, each attended as it comes, on `threads` threads and other pages.
std::vector<float> InChunks(const KvStrategyDef& def, const Backend& backend, const Case& c, int64_t total, int threads,
                            int64_t longest, const std::vector<float>& q, const std::vector<float>& k,
                            const std::vector<float>& v, int sink_pages = 0,
                            std::shared_ptr<const KvLayerScales> scales = nullptr) {
  Threads t(threads);
  Cache cache(def, backend, c, total, threads, sink_pages, std::move(scales));
  std::mt19937 random(static_cast<uint32_t>(threads + longest));
  std::vector<float> out(q.size());
  for (int64_t begin = 0; begin < total;) {
    const int64_t rows = std::min(total - begin, 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(longest)));
    cache.Store(t.ctx, c, k, v, begin, rows);
    cache.Attend(t.ctx, c, q, begin, rows, &out);
    begin += rows;
  }
  return out;
}

template <typename Check>
void ForEachStrategy(const Check& check) {
  ASSERT_FALSE(KvStrategies().empty());
  for (const BackendDef* backend_def : Backends()) {
    const auto backend = backend_def->open();
    if (!backend.ok()) {
      EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable) << backend.status();
      std::cout << backend_def->name << ": device unavailable: " << backend.status().message() << "\n";
      continue;
    }
    for (const KvStrategyDef* def : KvStrategies()) {
      for (const Case& c : kCases) {
        SCOPED_TRACE(testing::Message() << def->name << " on " << backend_def->name << " H=" << c.H << " KH=" << c.KH
                                        << " D=" << c.D << " page=" << c.page_tokens << " context=" << c.context
                                        << " rows=" << c.rows << " window=" << c.window);
        const auto bound = def->bind({c.KH, c.D, c.page_tokens, c.H}, **backend);
        if (!bound.ok() && !(*backend)->memory().is_host()) {
          EXPECT_EQ(GetErrorReason(bound.status()).reason, "NO_KERNEL") << bound.status();
          continue;
        }
        check(*def, **backend, c);
      }
    }
  }
}

TEST(KvConformance, StoreLoadAttend) {
  Threads threads(3);
  ForEachStrategy([&](const KvStrategyDef& def, const Backend& backend, const Case& c) {
    CheckCase(def, backend, c, threads.ctx);
  });
}

// Chunked prefill, decoding token by token, recomputation, other pages and other threads: the same bits.
TEST(KvConformance, ChunksThreadsAndPagesChangeNothing) {
  ForEachStrategy([&](const KvStrategyDef& def, const Backend& backend, const Case& c) {
    if (!backend.memory().is_host()) return;  // prompts and single rows have kernels of their own there
    const int64_t total = std::min<int64_t>(c.context + c.rows, 300), width = static_cast<int64_t>(c.KH) * c.D;
    std::vector<float> k = Normal(total * width, 4), v = Normal(total * width, 5);
    const std::vector<float> q = Normal(total * c.H * c.D, 6);
    // Magnitudes that grow and shrink within a page, and one channel that stands out.
    for (int64_t p = 0; p < total; ++p) {
      for (int64_t i = 0; i < width; ++i) {
        const float factor = std::exp2(static_cast<float>((p * 7) % 11) - 5) * (i % c.D == 3 ? 20.0f : 1.0f);
        k[static_cast<size_t>(p * width + i)] *= 0.1f * factor;
        v[static_cast<size_t>(p * width + i)] *= factor;
      }
    }
    const std::vector<float> whole = InChunks(def, backend, c, total, 1, 1, q, k, v);
    EXPECT_TRUE(SameBits(whole, InChunks(def, backend, c, total, 3, 1 << 20, q, k, v)));
    EXPECT_TRUE(SameBits(whole, InChunks(def, backend, c, total, 2, 50, q, k, v)));
    EXPECT_TRUE(SameBits(whole, InChunks(def, backend, c, total, 4, 7, q, k, v)));
  });
}

// A position reads as it was written, whatever comes after it and whatever other pages hold.
TEST(KvConformance, LaterPositionsDoNotReinterpret) {
  Threads threads(1);
  ForEachStrategy([&](const KvStrategyDef& def, const Backend& backend, const Case& c) {
    const int64_t total = 2 * c.page_tokens, width = static_cast<int64_t>(c.KH) * c.D;
    Cache cache(def, backend, c, total);
    const auto at = [&](std::vector<float>& x, int64_t p) { return x.data() + p * width; };
    std::vector<float> k = Normal(total * width, 7), v = Normal(total * width, 8), first_k(k), first_v(v), now_k(k),
                       now_v(v);
    for (int64_t p = 0; p < total; ++p) {
      const float factor = std::exp2(static_cast<float>(p % 13));
      for (int64_t i = 0; i < width; ++i) at(k, p)[i] *= factor, at(v, p)[i] *= factor;
      cache.Store(threads.ctx, c, k, v, p, 1);
      cache.Load(c, p, at(first_k, p), at(first_v, p));
    }
    for (int64_t p = 0; p < total; ++p) cache.Load(c, p, at(now_k, p), at(now_v, p));
    EXPECT_TRUE(SameBits(first_k, now_k));
    EXPECT_TRUE(SameBits(first_v, now_v));
    EXPECT_FALSE(!(RelativeError(now_k, std::vector<double>(k.begin(), k.end())) <= def.tolerance));
  });
}

// What is not finite in q, k or v is seen by every row that reads it, and by no other.
TEST(KvConformance, NothingNotFiniteIsHidden) {
  Threads threads(2);
  const float inf = std::numeric_limits<float>::infinity();
  ForEachStrategy([&](const KvStrategyDef& def, const Backend& backend, const Case& c) {
    const int64_t total = c.context + c.rows, width = static_cast<int64_t>(c.KH) * c.D;
    const std::vector<float> k = Normal(total * width, 9), v = Normal(total * width, 10),
                             q = Normal(total * c.H * c.D, 11);
    Cache clean(def, backend, c, total);
    std::vector<float> expected(q.size());
    clean.Store(threads.ctx, c, k, v, 0, total);
    clean.Attend(threads.ctx, c, q, 0, total, &expected);
    const int64_t bad = total / 2, head = c.KH - 1, group = c.H / c.KH;
    for (const float value : {std::nanf(""), inf, -inf}) {
      for (const int where : {0, 1, 2}) {
        std::vector<float> q2 = q, k2 = k, v2 = v, out(q.size());
        (where == 0 ? q2[static_cast<size_t>((bad * c.H + c.H - 1) * c.D)]
                    : (where == 1 ? k2 : v2)[static_cast<size_t>(bad * width + head * c.D)]) = value;
        Cache cache(def, backend, c, total);
        cache.Store(threads.ctx, c, k2, v2, 0, total);
        cache.Attend(threads.ctx, c, q2, 0, total, &out);
        for (int64_t m = 0; m < total; ++m) {
          for (int64_t h = 0; h < c.H; ++h) {
            const size_t at = static_cast<size_t>((m * c.H + h) * c.D);
            const bool sees = where == 0 ? m == bad && h == c.H - 1
                                         : m >= bad && h / group == head && (c.window == 0 || m - bad < c.window);
            if (sees) {
              EXPECT_FALSE(std::isfinite(out[at])) << where << " row " << m << " head " << h << " of " << value;
            } else {
              EXPECT_EQ(std::memcmp(&out[at], &expected[at], static_cast<size_t>(c.D) * 4), 0) << where << " row " << m;
            }
          }
        }
      }
    }
  });
}

// Calibrated scales of x [rows, KH * D]: one, one a head or one a channel, the last with zero points when asked.
KvScales ScalesOf(const Case& c, const std::vector<float>& x, int64_t count, float largest, bool asymmetric) {
  const int64_t width = static_cast<int64_t>(c.KH) * c.D, own = width / count;
  KvScales out;
  for (int64_t unit = 0; unit < count; ++unit) {
    float low = 0, high = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (static_cast<int64_t>(i) % width / own != unit) continue;
      low = std::min(low, x[i]);
      high = std::max(high, x[i]);
    }
    out.scale.push_back(asymmetric ? (high - low) / 255.0f : std::max(-low, high) / largest);
    if (asymmetric) out.zero.push_back(std::nearbyint(-low / out.scale.back()) - 128.0f);
  }
  return out;
}

struct Variant {
  std::string name;
  int sink_pages = 0;
  std::shared_ptr<const KvLayerScales> scales;
};

// Every way in which calibrated scales and sinks go together for a strategy of 8 bits.
std::vector<Variant> VariantsOf(const KvStrategyDef& def, const Case& c, const std::vector<float>& k,
                                const std::vector<float>& v) {
  const float largest = def.name == "fp8_e4m3" ? 448.0f : def.name == "fp8_e5m2" ? 57344.0f : 127.0f;
  std::vector<Variant> out = {{"sinks", 1, nullptr}, {"two pages of sinks", 2, nullptr}};
  const auto add = [&](const char* name, int64_t count, bool asymmetric) {
    const auto scales = std::make_shared<const KvLayerScales>(
        KvLayerScales{ScalesOf(c, k, count, largest, asymmetric), ScalesOf(c, v, count, largest, asymmetric)});
    out.push_back({name, 0, scales});
    out.push_back({std::string(name) + " and sinks", 1, scales});
  };
  add("one scale", 1, false);
  add("a scale a head", c.KH, false);
  if (def.name != "int8_per_channel") return out;
  add("a scale a channel", static_cast<int64_t>(c.KH) * c.D, false);
  add("a scale and a zero point a channel", static_cast<int64_t>(c.KH) * c.D, true);
  return out;
}

template <typename Check>
void ForEachVariant(const Check& check) {
  ForEachStrategy([&](const KvStrategyDef& def, const Backend& backend, const Case& c) {
    // Head sizes that 16 divides and does not, groups of one and more, windows within and beyond the sinks.
    if (def.bits > 8 || (c.D != 64 && c.D != 33 && c.D != 8 && c.window != 20)) return;
    const int64_t total = std::min<int64_t>(c.context + c.rows, 300), width = static_cast<int64_t>(c.KH) * c.D;
    std::vector<float> k = Normal(total * width, 21), v = Normal(total * width, 22);
    // One channel that stands out and one whose values have an offset; the first position is far out, as sinks are.
    for (int64_t p = 0; p < total; ++p) {
      for (int h = 0; h < c.KH; ++h) {
        k[static_cast<size_t>(p * width + h * c.D + 3)] *= 8.0f;
        v[static_cast<size_t>(p * width + h * c.D + 5)] += 4.0f;
      }
    }
    for (const Variant& variant : VariantsOf(def, c, k, v)) {
      SCOPED_TRACE(variant.name);
      check(def, backend, c, variant, total, k, v);
    }
  });
}

// Attention equals the naive one over the values that the cache was given, within what 8 bits of the range lose.
TEST(KvConformance, CalibratedScalesAndSinksAttend) {
  Threads threads(3);
  ForEachVariant([&](const KvStrategyDef& def, const Backend& backend, Case c, const Variant& variant, int64_t total,
                     const std::vector<float>& k, const std::vector<float>& v) {
    c.rows = std::min(c.rows, total);
    c.context = total - c.rows;
    const int64_t width = static_cast<int64_t>(c.KH) * c.D;
    Cache cache(def, backend, c, total, 0, variant.sink_pages, variant.scales);
    const std::vector<float> q = Normal(total * c.H * c.D, 23);
    cache.Store(threads.ctx, c, k, v, 0, total);
    std::vector<float> k2 = k, v2 = v, out(q.size());
    const int64_t sinks = static_cast<int64_t>(variant.sink_pages) * c.page_tokens;
    for (int64_t p = sinks; p < total; ++p) {
      const int32_t page = cache.table[static_cast<size_t>(KvPageIndex(p / c.page_tokens, variant.sink_pages))];
      cache.kernel->Load(cache.arena.as<uint8_t>(), page, static_cast<int>(p % c.page_tokens), k2.data() + p * width,
                         v2.data() + p * width);
    }
    EXPECT_FALSE(!(RelativeError(k2, std::vector<double>(k.begin(), k.end())) <= 0.09));
    EXPECT_FALSE(!(RelativeError(v2, std::vector<double>(v.begin(), v.end())) <= 0.09));
    cache.Attend(threads.ctx, c, q, c.context, c.rows, &out);
    out.erase(out.begin(), out.begin() + c.context * c.H * c.D);
    // f16 keeps eleven bits of a sink, which k2 and v2 hold exactly.
    EXPECT_FALSE(!(RelativeError(out, NaiveRows(c, q, k2, v2)) <= (sinks > 0                    ? 4e-3
                                                                   : backend.memory().is_host() ? 2e-5
                                                                                                : 1e-3)));
  });
}

TEST(KvConformance, CalibratedScalesAndSinksKeepTheBits) {
  ForEachVariant([&](const KvStrategyDef& def, const Backend& backend, const Case& c, const Variant& variant,
                     int64_t total, const std::vector<float>& k, const std::vector<float>& v) {
    if (!backend.memory().is_host()) return;  // as above
    const std::vector<float> q = Normal(total * c.H * c.D, 24);
    const auto run = [&](int threads, int64_t longest) {
      return InChunks(def, backend, c, total, threads, longest, q, k, v, variant.sink_pages, variant.scales);
    };
    const std::vector<float> whole = run(1, 1);
    EXPECT_TRUE(SameBits(whole, run(3, 1 << 20)));
    EXPECT_TRUE(SameBits(whole, run(4, 7)));
  });
}

// msModelSlim's arithmetic (seed-systems.md C2): code = clamp(round_half_even(x / scale + offset)), x = (code - offset)
// scale.
TEST(KvConformance, ChannelCodesFollowTheFormula) {
  const auto backend = OpenBackend("cpu");
  ASSERT_TRUE(backend.ok());
  const KvStrategyDef& def = **FindKvStrategy("int8_per_channel");
  const Case c{1, 1, 4, 16, 0, 1, 0};
  const auto scales = std::make_shared<const KvLayerScales>(
      KvLayerScales{{{2.0f, 0.5f, 1.0f, 0.25f}, {0, -128, 10, 127}}, {{2.0f, 1.0f, 1.0f, 1.0f}, {}}});
  Cache cache(def, **backend, c, 1, 0, 0, scales);
  Threads threads(1);
  const std::vector<float> k = {4.0f, 100.0f, 2.5f, -63.0f}, v = {4.0f, 200.0f, -300.0f, 0.5f};
  cache.Store(threads.ctx, c, k, v, 0, 1);
  std::vector<float> k2(4), v2(4);
  cache.Load(c, 0, k2.data(), v2.data());
  EXPECT_EQ(k2, (std::vector<float>{4.0f, 100.0f, 2.0f, -63.0f}));
  EXPECT_EQ(v2, (std::vector<float>{4.0f, 127.0f, -128.0f, 0.0f}));
}

TEST(KvConformance, BadCalibratedScalesAreRefused) {
  const auto backend = OpenBackend("cpu");
  ASSERT_TRUE(backend.ok());
  const auto bind = [&](const char* strategy, const KvScales& scales) {
    KvLayout layout{2, 8, 16, 2};
    layout.scales = std::make_shared<const KvLayerScales>(KvLayerScales{scales, scales});
    return (*FindKvStrategy(strategy))->bind(layout, **backend).status();
  };
  EXPECT_TRUE(bind("fp8_e4m3", {{1.0f}, {}}).ok());
  EXPECT_TRUE(bind("int8_per_token", {{1.0f, 2.0f}, {}}).ok());
  const std::vector<float> channels(16, 1.0f);
  EXPECT_TRUE(bind("int8_per_channel", {channels, channels}).ok());
  for (const absl::Status& status :
       {bind("bf16", {{1.0f}, {}}), bind("fp8_e4m3", {channels, {}}), bind("fp8_e4m3", {{}, {}}),
        bind("int8_per_token", {{1.0f, 1.0f, 1.0f}, {}}), bind("fp8_e5m2", {{0.0f}, {}}),
        bind("fp8_e4m3", {{std::nanf("")}, {}}), bind("int8_per_channel", {{1.0f}, {1.0f}}),
        bind("int8_per_channel", {channels, std::vector<float>(16, 0.5f)}),
        bind("int8_per_channel", {channels, std::vector<float>(16, 128.0f)})}) {
    EXPECT_EQ(GetErrorReason(status).reason, "BAD_KV_SCALES") << status;
  }
}

}  // namespace
}  // namespace sage
