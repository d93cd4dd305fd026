// The attention and KV store kernels run in the host emulator: stored values equal the CPU's bit for bit, attention
// equals the plain f64 one over what was stored, whatever lies in unused memory and however positions are cut.
#include "engine/backends/cuda/kernels/attention_kernel.h"

#include <cmath>

#include "engine/api/kv_strategy.h"
#include "engine/backends/cpu/kv_page_format.h"
#include "engine/backends/cuda/attention_plan.h"
#include "engine/backends/cuda/kernels/kv_store_kernel.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"

namespace sage::cuda {
namespace {

struct Format {
  const char* name;
  KvStore store;
  KvCode code;
  cpu::KvFormat cpu;
  double tolerance;
};
const Format kFormats[] = {{"fp8_e4m3", KvStore::kFp8, kE4m3Code, cpu::KvFormat::kE4M3, 1e-3},
                           {"fp8_e5m2", KvStore::kFp8, kE5m2Code, cpu::KvFormat::kE5M2, 1e-3},
                           {"int8_per_token", KvStore::kInt8, kInt8Code, cpu::KvFormat::kInt8, 1e-3},
                           {"bf16", KvStore::kBf16, kFloatCode, cpu::KvFormat::kBF16, 2e-5},
                           {"f32", KvStore::kF32, kFloatCode, cpu::KvFormat::kF32, 2e-5}};

struct Case {
  int H, KH, D, page_tokens;
  int64_t context, rows, window;
  int sinks;
};

// One sequence in emulated device memory.
struct Cache {
  Case c;
  Format format;
  KvLayout layout;
  KvOffsets offsets;
  int64_t total, width;
  std::vector<float> k, v, q;
  std::vector<int32_t> table;
  Tensor arena;

  Cache(const Case& shape, const Format& f) : c(shape), format(f), total(c.context + c.rows), width(c.KH * c.D) {
    layout = {c.KH, c.D, c.page_tokens, c.H, c.sinks};
    offsets =
        MakeKvOffsets(c.KH, Dp(), c.page_tokens, StoreBytes(f.store), f.code.largest > 0, f.store == KvStore::kFp8);
    EXPECT_EQ(offsets.page,
              static_cast<int64_t>(KvPageBytes(layout, static_cast<size_t>(StoreBytes(f.store)),
                                               f.code.largest > 0 ? sizeof(float) : 0, f.store == KvStore::kFp8)));
    k = Normal(total * width, 1);
    v = Normal(total * width, 2);
    q = Normal(c.rows * c.H * c.D, 3);
    const int64_t pages = KvPageEntries((total + c.page_tokens - 1) / c.page_tokens, c.sinks);
    for (int64_t p = 0; p < pages; ++p) table.push_back(static_cast<int32_t>(pages - 1 - p));
    arena = Tensor::Allocate(DType::kU8, {pages * offsets.page}).value();
    std::fill_n(arena.as<uint8_t>(), arena.bytes(), uint8_t{0xff});
  }
  int64_t Dp() const { return (c.D + 15) / 16 * 16; }

  void Store(int64_t begin, int64_t rows) {
    const SequenceSlice slice{0, rows, begin, total, table.data()};
    const AttentionPlan plan = PlanAttention(absl::MakeConstSpan(&slice, 1), layout);
    KvStoreArgs a;
    a.slices = reinterpret_cast<const PlacedSlice*>(plan.words.data() + plan.slices);
    a.row_slice = plan.words.data() + plan.row_slice;
    a.pages = plan.words.data() + plan.pages;
    a.arena = arena.as<uint8_t>();
    a.offsets = offsets;
    a.code = format.code;
    a.store = format.store;
    a.k = k.data() + begin * width;
    a.v = v.data() + begin * width;
    a.k_stride = a.v_stride = width;
    a.M = static_cast<int32_t>(rows);
    a.D = c.D;
    a.Dp = static_cast<int32_t>(Dp());
    a.page_tokens = c.page_tokens;
    a.sink_pages = c.sinks;
    simt::Launch({static_cast<unsigned>(rows), static_cast<unsigned>(c.KH), 2}, {32}, static_cast<size_t>(Dp()) * 4,
                 [&] { KvStoreKernel(a); });
  }

  template <KvStore kStore, int kD>
  void Launch(const AttentionKernelArgs& a, const AttentionPlan& plan) {
    const auto heads = static_cast<unsigned>(c.KH), items = static_cast<unsigned>(plan.item_count);
    simt::Launch({items, heads, static_cast<unsigned>(plan.splits)}, {128}, AttentionSharedBytes(kStore, kD),
                 [&] { AttentionKernel<kStore, kD>(a); });
    if (plan.combines) simt::Launch({items, heads}, {128}, 0, [&] { AttentionCombineKernel<kD>(a); });
  }

  std::vector<float> Attend() {
    const SequenceSlice slice{0, c.rows, c.context, total, table.data()};
    const AttentionPlan plan = PlanAttention(absl::MakeConstSpan(&slice, 1), layout);
    std::vector<float> out(q.size(), NAN);
    std::vector<float> states(static_cast<size_t>(plan.state_rows * (c.D > 64 ? 130 : 66)), NAN);
    AttentionKernelArgs a;
    a.slices = reinterpret_cast<const PlacedSlice*>(plan.words.data() + plan.slices);
    a.items = reinterpret_cast<const AttentionItem*>(plan.words.data() + plan.items);
    a.pages = plan.words.data() + plan.pages;
    a.arena = arena.as<uint8_t>();
    a.offsets = offsets;
    a.code = format.code;
    a.q = q.data();
    a.out = out.data();
    a.states = states.data();
    a.q_stride = a.out_stride = int64_t{c.H} * c.D;
    a.group = c.H / c.KH;
    a.KH = c.KH;
    a.D = c.D;
    a.Dp = static_cast<int32_t>(Dp());
    a.page_tokens = c.page_tokens;
    a.sink_pages = c.sinks;
    a.window = static_cast<int32_t>(c.window);
    a.score_factor = Scale() * 1.44269504f;
    const bool wide = c.D > 64;
    switch (format.store) {
      case KvStore::kFp8:
        wide ? Launch<KvStore::kFp8, 128>(a, plan) : Launch<KvStore::kFp8, 64>(a, plan);
        break;
      case KvStore::kInt8:
        wide ? Launch<KvStore::kInt8, 128>(a, plan) : Launch<KvStore::kInt8, 64>(a, plan);
        break;
      case KvStore::kBf16:
        wide ? Launch<KvStore::kBf16, 128>(a, plan) : Launch<KvStore::kBf16, 64>(a, plan);
        break;
      case KvStore::kF32:
        wide ? Launch<KvStore::kF32, 128>(a, plan) : Launch<KvStore::kF32, 64>(a, plan);
        break;
    }
    return out;
  }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(c.D)); }

  // What the page holds of channel d of a head.
  float Stored(int64_t position, int head, int d, bool key) const {
    const auto page = static_cast<int32_t>(position / c.page_tokens),
               slot = static_cast<int32_t>(position % c.page_tokens);
    const int32_t entry = PageEntry(page, c.sinks);
    const auto at = [&](int32_t e) { return arena.as<uint8_t>() + table[static_cast<size_t>(e)] * offsets.page; };
    if (format.code.largest > 0 && page < c.sinks) {
      const auto* half = reinterpret_cast<const uint16_t*>(at(entry + (key ? 0 : 1)) + head * offsets.sink_head);
      return simt::F16Value(half[slot * Dp() + d]);
    }
    const uint8_t* base = at(entry) + head * offsets.head;
    const uint8_t* values = base + (key ? 0 : offsets.v);
    if (format.store == KvStore::kF32) return reinterpret_cast<const float*>(values)[slot * Dp() + d];
    if (format.store == KvStore::kBf16) {
      return simt::Bf16Value(reinterpret_cast<const uint16_t*>(values)[slot * Dp() + d]);
    }
    const float scale = reinterpret_cast<const float*>(base + (key ? offsets.k_scale : offsets.v_scale))[slot];
    const float value = DecodeCode(values[slot * Dp() + d], format.store, format.code) * std::fabs(scale);
    if (!(scale < 0)) return value;
    return value + simt::F16Value(reinterpret_cast<const uint16_t*>(base + offsets.k_reference)[d]);
  }

  double Naive(int64_t row, int h, int d) const {
    const int64_t position = c.context + row, first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
    const int head = h / (c.H / c.KH);
    std::vector<double> weight;
    double top = -1e300, sum = 0, out = 0;
    for (int64_t j = first; j <= position; ++j) {
      double dot = 0;
      for (int e = 0; e < c.D; ++e) {
        dot += static_cast<double>(q[static_cast<size_t>((row * c.H + h) * c.D + e)]) * Stored(j, head, e, true);
      }
      weight.push_back(dot * Scale());
      top = std::max(top, weight.back());
    }
    for (double& w : weight) sum += w = std::exp(w - top);
    for (int64_t j = first; j <= position; ++j) {
      out += weight[static_cast<size_t>(j - first)] / sum * Stored(j, head, d, false);
    }
    return out;
  }
};

TEST(CudaAttention, EqualsThePlainOneOverWhatWasStored) {
  const Case cases[] = {{4, 4, 64, 16, 0, 1, 0, 0},   {14, 2, 64, 16, 300, 1, 0, 0},  {8, 1, 128, 32, 40, 2, 0, 1},
                        {9, 3, 48, 16, 5, 12, 0, 0},  {7, 1, 128, 16, 70, 11, 30, 0}, {2, 1, 80, 64, 130, 3, 20, 0},
                        {20, 1, 33, 16, 17, 1, 0, 2}, {3, 3, 16, 128, 255, 2, 1, 0}};
  for (const Format& format : kFormats) {
    for (const Case& c : cases) {
      SCOPED_TRACE(testing::Message() << format.name << " H=" << c.H << " D=" << c.D << " rows=" << c.rows);
      Cache cache(c, format);
      if (c.context > 0) cache.Store(0, c.context);
      cache.Store(c.context, c.rows);
      const std::vector<float> out = cache.Attend();
      double error = 0, energy = 0;
      for (int64_t row = 0; row < c.rows; ++row) {
        for (int h = 0; h < c.H; ++h) {
          for (int d = 0; d < c.D; d += 5) {
            const double want = cache.Naive(row, h, d);
            error += std::pow(out[static_cast<size_t>((row * c.H + h) * c.D + d)] - want, 2);
            energy += want * want;
          }
        }
      }
      EXPECT_FALSE(!(std::sqrt(error / energy) <= format.tolerance)) << std::sqrt(error / energy);
    }
  }
}

TEST(CudaAttention, PagesHoldWhatTheCpuStores) {
  for (const Format& format : kFormats) {
    const Case c{6, 3, 48, 16, 0, 37, 0, 0};
    Cache cache(c, format);
    for (size_t i = 0; i < cache.k.size(); ++i) cache.k[i] *= std::exp2(static_cast<float>(i % 29) - 14.0f);
    cache.Store(0, 37);
    const cpu::KvPageFormat pages(cache.layout, format.cpu);
    std::vector<uint8_t> page(pages.page_bytes());
    std::vector<float> k(static_cast<size_t>(cache.width)), v(k.size());
    for (int64_t p = 0; p < 37; ++p) {
      const int slot = static_cast<int>(p % 16);
      pages.StoreRow(page.data(), slot, cache.k.data() + p * cache.width, cache.v.data() + p * cache.width);
      pages.LoadRow(page.data(), slot, k.data(), v.data());
      for (int i = 0; i < cache.width; ++i) {
        const auto at = static_cast<size_t>(i);
        ASSERT_EQ(cache.Stored(p, i / c.D, i % c.D, true), k[at]) << format.name << " position " << p;
        ASSERT_EQ(cache.Stored(p, i / c.D, i % c.D, false), v[at]) << format.name << " position " << p;
      }
    }
  }
}

TEST(CudaAttention, APositionThatIsNotFiniteSpoilsTheRowsThatSeeIt) {
  for (const Format& format : kFormats) {
    // Rows 15 to 26 attend in one tile; the sinks cover the bad position in the second round.
    for (const int sinks : {0, 2}) {
      Cache clean({2, 1, 64, 16, 0, 40, 0, sinks}, format), cache({2, 1, 64, 16, 0, 40, 0, sinks}, format);
      cache.v[20 * 64 + 3] = INFINITY;
      std::vector<float> out[2];
      for (Cache* one : {&clean, &cache}) {
        one->Store(0, 40);
        one->c.context = 15;
        one->c.rows = 12;
        out[one == &cache ? 1 : 0] = one->Attend();
      }
      for (size_t row = 0; row < 12; ++row) {
        for (size_t i = row * 128; i < (row + 1) * 128; ++i) {
          if (row < 5) {
            ASSERT_EQ(out[1][i], out[0][i]) << format.name << " row " << row;
          } else {
            ASSERT_FALSE(i % 64 == 3 && std::isfinite(out[1][i])) << format.name << " row " << row;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sage::cuda
