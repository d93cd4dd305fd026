// A cut layer means the same as the rectangle of the whole, for every canonical form and every kind of group.
#include "engine/api/linear_shard.h"

#include <random>
#include <thread>

#include "engine/api/communicator.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

// What w[n, k] is, by the comments of linear_spec.h.
float Value(const LinearWeight& weight, int64_t n, int64_t k) {
  const auto at = static_cast<size_t>(n * weight.K + k);
  if (!weight.dense.values.empty()) return weight.dense.values.as<float>()[at];
  if (!weight.integer.codes.empty()) {
    const IntegerWeight& w = weight.integer;
    const auto G = static_cast<int64_t>(w.scale.size()) / weight.N;
    const int64_t g = w.g_idx.empty() ? k / w.group_size : w.g_idx[static_cast<size_t>(k)];
    EXPECT_LT(g, G);
    const auto s = static_cast<size_t>(n * G + g);
    return w.scale[s] * static_cast<float>(w.codes[at]) + (w.offset.empty() ? 0.0f : w.offset[s]);
  }
  const FloatCodeWeight& w = weight.floats;
  int64_t s = (n * weight.K + k) / std::max<int64_t>(1, w.flat_block);
  if (w.flat_block == 0) {
    s = n / w.block_rows * ((weight.K + w.block_columns - 1) / w.block_columns) + k / w.block_columns;
  }
  EXPECT_LT(s, static_cast<int64_t>(w.scale.size()));
  if (w.kind == FloatCodeWeight::Kind::kTable16) {
    const int nibble = w.codes[at / 2] >> ((at % 2 == 0) == w.high_nibble_first ? 4 : 0) & 15;
    return w.table[static_cast<size_t>(nibble)] * w.scale[static_cast<size_t>(s)];
  }
  return DecodeE4M3(w.codes[at]) * w.scale[static_cast<size_t>(s)];
}

void Check(const LinearWeight& whole, const LinearCut& cut) {
  const auto part = CutLinear(whole, cut);
  ASSERT_TRUE(part.ok()) << part.status();
  ASSERT_EQ(part->N, cut.inputs ? whole.N : cut.end - cut.begin);
  ASSERT_EQ(part->K, cut.inputs ? cut.end - cut.begin : whole.K);
  for (int64_t n = 0; n < part->N; ++n) {
    for (int64_t k = 0; k < part->K; ++k) {
      ASSERT_EQ(Value(*part, n, k), Value(whole, n + (cut.inputs ? 0 : cut.begin), k + (cut.inputs ? cut.begin : 0)))
          << n << " " << k;
    }
  }
  if (!cut.inputs) {
    ASSERT_EQ(part->bias, std::vector<float>(whole.bias.begin() + cut.begin, whole.bias.begin() + cut.end));
  } else {
    ASSERT_EQ(part->bias, cut.begin == 0 ? whole.bias : std::vector<float>());
  }
}

void CheckAll(const LinearWeight& whole, int64_t step) {
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 48}, {48, 96}, {16, 64}, {80, 96}}) {
    Check(whole, {true, begin / step * step, end / step * step});
  }
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 6}, {6, 12}, {5, 9}})
    Check(whole, {false, begin, end});
}

struct Weights {
  std::mt19937 random{5};
  LinearWeight Begin() {
    LinearWeight w;
    w.N = 12;
    w.K = 96;
    for (int i = 0; i < 12; ++i) w.bias.push_back(static_cast<float>(i));
    return w;
  }
  std::vector<float> Scales(size_t count) {
    std::vector<float> out(count);
    for (float& v : out) v = 1.0f + static_cast<float>(random() % 1000);
    return out;
  }
};

TEST(LinearShard, IntegerGroupsWithAndWithoutOrder) {
  for (const int64_t group : {16, 32, 48, 96}) {
    for (const bool ordered : {false, true}) {
      Weights make;
      LinearWeight w = make.Begin();
      for (int i = 0; i < 12 * 96; ++i) w.integer.codes.push_back(static_cast<int8_t>(make.random() % 16));
      w.integer.group_size = group;
      w.integer.scale = make.Scales(static_cast<size_t>(12 * 96 / group));
      w.integer.offset = make.Scales(w.integer.scale.size());
      for (int k = 0; ordered && k < 96; ++k) {
        w.integer.g_idx.push_back(static_cast<int32_t>(make.random() % static_cast<uint64_t>(96 / group)));
      }
      CheckAll(w, 1);
    }
  }
}

TEST(LinearShard, DenseAndFloatCodes) {
  Weights make;
  LinearWeight dense = make.Begin();
  const std::vector<float> values = make.Scales(12 * 96);
  dense.dense.values = {DType::kF32, {12, 96}, values.data(), values.size() * 4};
  CheckAll(dense, 1);

  std::vector<uint8_t> codes(12 * 96);
  for (uint8_t& c : codes) c = static_cast<uint8_t>(make.random() % 0x7f);
  struct Blocks {
    int64_t rows, columns, flat;
  };
  for (const Blocks& b : {Blocks{1, 96, 0}, {4, 32, 0}, {12, 96, 0}, {3, 64, 0}, {1, 0, 64}, {1, 0, 192}}) {
    for (const bool nibbles : {false, true}) {
      LinearWeight w = make.Begin();
      w.floats.kind = nibbles ? FloatCodeWeight::Kind::kTable16 : FloatCodeWeight::Kind::kE4M3;
      w.floats.codes = codes.data();
      w.floats.bytes = codes.size() / (nibbles ? 2 : 1);
      w.floats.table = make.Scales(16);
      w.floats.block_rows = b.rows;
      w.floats.block_columns = b.columns;
      w.floats.flat_block = b.flat;
      const int64_t count =
          b.flat > 0 ? 12 * 96 / b.flat : (12 + b.rows - 1) / b.rows * ((96 + b.columns - 1) / b.columns);
      w.floats.scale = make.Scales(static_cast<size_t>(count));
      CheckAll(w, 2);
    }
  }
}

TEST(LinearShard, BlocksStayWhole) {
  Weights make;
  LinearWeight w = make.Begin();
  std::vector<uint8_t> bytes(12 * 3 * 34);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(make.random());
  w.blocks = {"q8_0", bytes.data(), bytes.size()};
  const auto part = CutLinear(w, {true, 32, 96});
  ASSERT_TRUE(part.ok()) << part.status();
  ASSERT_EQ(part->blocks.bytes, 12u * 2 * 34);
  for (size_t n = 0; n < 12; ++n) {
    EXPECT_TRUE(std::equal(bytes.begin() + static_cast<int64_t>(n * 102 + 34),
                           bytes.begin() + static_cast<int64_t>(n * 102 + 102), part->blocks.data + n * 68));
  }
  EXPECT_EQ(GetErrorReason(CutLinear(w, {true, 16, 48}).status()).reason, "TENSOR_PARALLEL_SIZE");
  EXPECT_EQ(GetErrorReason(CutLinear(w, {false, 6, 13}).status()).reason, "TENSOR_PARALLEL_SIZE");
}

TEST(LinearShard, HeadsAndWidths) {
  DecoderConfig config;
  config.H = 8;
  config.KH = 2;
  config.D = 4;
  config.ffn = 32;
  // Two ranks hold each kv head.
  const auto shard = ShardDecoder(config, 3, 4);
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ(shard->heads, 2);
  EXPECT_EQ(shard->kv_heads, 1);
  const LinearCut k = CutOf(config, *shard, "k_proj"), o = CutOf(config, *shard, "o_proj");
  EXPECT_EQ(k.begin, 4);
  EXPECT_EQ(k.end, 8);
  EXPECT_TRUE(o.inputs);
  EXPECT_EQ(o.begin, 24);
  EXPECT_EQ(CutOf(config, *shard, "lm_head").end, 0);
  config.KH = 4;
  EXPECT_FALSE(ShardDecoder(config, 0, 3).ok());
  config.H = 6;
  config.KH = 3;
  EXPECT_FALSE(ShardDecoder(config, 0, 2).ok());
}

TEST(Communicator, SumsInTheOrderOfRanks) {
  auto ranks = SharedMemoryCommunicators(3);
  std::vector<std::vector<float>> data(3, std::vector<float>(1001));
  for (size_t r = 0; r < 3; ++r) {
    for (size_t i = 0; i < 1001; ++i) data[r][i] = static_cast<float>(i * (r + 1)) * 0.1f;
  }
  const auto before = data;
  std::vector<std::thread> threads;
  std::vector<absl::Status> statuses(3);
  for (size_t r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      for (int round = 0; round < 20; ++round) {
        data[r] = before[r];
        statuses[r].Update(ranks[r]->Sum(data[r].data(), 1001));
      }
      // A rank that lost its place is told, and so is everybody else.
      const absl::Status status = ranks[r]->Sum(data[r].data(), r == 0 ? 0 : 1);
      if (status.ok()) statuses[r].Update(absl::InternalError("no error"));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t r = 0; r < 3; ++r) {
    EXPECT_TRUE(statuses[r].ok()) << statuses[r];
    for (size_t i = 0; i < 1001; ++i) ASSERT_EQ(data[r][i], before[0][i] + before[1][i] + before[2][i]);
  }
}

}  // namespace
}  // namespace sage
