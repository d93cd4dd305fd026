// Index arithmetic of the packed layout: bijections, fragments as PTX defines them, banks, slices, divisions.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "engine/backends/cuda/host/linear_plan.h"
#include "engine/backends/cuda/kernels/linear_decode.h"
#include "engine/backends/cuda/kernels/linear_prepare_kernel.h"
#include "engine/backends/cuda/kernels/linear_rows.h"
#include "engine/quant/fp8.h"
#include "gtest/gtest.h"

namespace sage::cuda {
namespace {

constexpr Code kCodes[] = {Code::kInt4, Code::kTable16, Code::kInt8,   Code::kE4M3,
                           Code::kE5M2, Code::kInt4A8,  Code::kInt8A8, Code::kE4M3A8};

// Lanes of a shared-memory access of `bytes` a lane run in phases of 128 bytes; the most addresses of one bank in a
// phase.
int Conflicts(const std::vector<int64_t>& byte_of_lane, int bytes) {
  const int lanes = 128 / bytes;
  int worst = 0;
  for (int first = 0; first < 32; first += lanes) {
    std::map<int64_t, std::set<int64_t>> words;
    for (int lane = first; lane < std::min(32, first + lanes); ++lane) {
      for (int w = 0; w < bytes; w += 4) {
        const int64_t word = (byte_of_lane[static_cast<size_t>(lane)] + w) / 4;
        words[word % 32].insert(word);
      }
    }
    for (const auto& [bank, set] : words) worst = std::max(worst, static_cast<int>(set.size()));
  }
  return worst;
}

TEST(LinearLayoutTest, EveryCodeOfATileHasOnePlace) {
  for (const Code code : kCodes) {
    std::set<std::pair<int, int>> seen;
    const int per_unit = IsNibble(code) ? 32 : 16;
    for (int unit = 0; unit < WeightUnits(code); ++unit) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < per_unit; ++i) {
          const TileElement e = WeightElement(code, lane, unit, i);
          EXPECT_TRUE(e.row >= 0 && e.row < kRowTile && e.k >= 0 && e.k < kBlockInputs);
          EXPECT_TRUE(seen.insert({e.row, e.k}).second);
        }
      }
    }
    EXPECT_EQ(seen.size(), size_t{kRowTile * kBlockInputs});
  }
}

TEST(LinearLayoutTest, ActivationBytesAreTheInverseOfElements) {
  for (const Code code : kCodes) {
    const int size = HasByteActivations(code) ? 1 : 2;
    const int64_t tiles = 3, blocks = 2;
    std::set<size_t> seen;
    for (int64_t kb = 0; kb < blocks; ++kb) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        for (int unit = 0; unit < ActivationUnits(code); ++unit) {
          for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 16 / size; ++i) {
              const TileElement e = ActivationElement(code, lane, unit, i);
              const size_t byte = ActivationByte(code, tiles, tile * 8 + e.row, kb * 64 + e.k);
              const int64_t unit_at = (kb * tiles + tile) * ActivationUnits(code) + unit;
              EXPECT_EQ(byte, static_cast<size_t>(unit_at * kUnitBytes + lane * 16 + i * size));
              seen.insert(byte);
            }
          }
        }
      }
    }
    EXPECT_EQ(seen.size() * static_cast<size_t>(size), static_cast<size_t>(blocks * tiles * ActivationTileBytes(code)));
  }
}

// The inputs that a register half or byte of operand A stands for are those of the same place in operand B.
TEST(LinearLayoutTest, OperandsMeetInTheSameInputs) {
  for (const Code code : kCodes) {
    const bool bytes = HasByteActivations(code);
    const int each = bytes ? 4 : 2;  // values of a register
    for (int lane = 0; lane < 32; ++lane) {
      for (int step = 0; step < Steps(code); ++step) {
        for (int reg = 0; reg < 2; ++reg) {
          for (int e = 0; e < each; ++e) {
            // Register `reg` of B: bytes of the lane's unit; register 2 reg of A holds the same columns of row g.
            const int unit = bytes ? 0 : step / 2, word = (bytes ? step : step % 2) * 2 + reg;
            const TileElement b = ActivationElement(code, lane, unit, word * each + e);
            // The lane's columns are the same for every row group of A: look the code up by what it decodes to.
            bool found = false;
            for (int u = 0; u < WeightUnits(code); ++u) {
              for (int i = 0; i < (IsNibble(code) ? 32 : 16); ++i) {
                const TileElement a = WeightElement(code, lane, u, i);
                found = found || (a.row == lane / 4 && a.k == b.k);
              }
            }
            EXPECT_TRUE(found);
          }
        }
      }
    }
  }
}

float HalfAt(uint32_t pair, int e) { return F16ToFloat(static_cast<uint16_t>(pair >> (16 * e))); }

// Packs one tile whose code at (row, k) is fn(row, k), decodes every lane and step, and hands (row, k, value) to check.
template <Code kCode, typename Fn, typename Check>
void DecodeTile(const DecodeConstants& constants, const std::vector<uint8_t>& table, Fn fn, Check check) {
  const int bits = IsNibble(kCode) ? 4 : 8;
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t words[8] = {};
    for (int unit = 0; unit < WeightUnits(kCode); ++unit) {
      for (int i = 0; i < 128 / bits; ++i) {
        const TileElement e = WeightElement(kCode, lane, unit, i);
        const uint32_t code = fn(e.row, e.k) & ((1u << bits) - 1);
        words[unit * 4 + i * bits / 32] |= code << (i * bits % 32);
      }
    }
    for (int step = 0; step < Steps(kCode); ++step) {
      uint32_t a[4];
      DecodeStep<kCode>(words, step, constants, table.data() + lane * 4, a);
      for (int reg = 0; reg < 4; ++reg) {
        // PTX: register reg holds row g + 8 (reg % 2) and the columns whose B values lie in register reg / 2.
        const int row = lane / 4 + reg % 2 * 8;
        if (HasByteActivations(kCode)) {
          for (int e = 0; e < 4; ++e) {
            const int k = ActivationElement(kCode, lane, 0, (step * 2 + reg / 2) * 4 + e).k;
            check(row, k, static_cast<float>(a[reg] >> (8 * e) & 255u));
          }
        } else {
          for (int e = 0; e < 2; ++e) {
            const int k = ActivationElement(kCode, lane, step / 2, (step % 2 * 2 + reg / 2) * 2 + e).k;
            check(row, k, HalfAt(a[reg], e));
          }
        }
      }
    }
  }
}

DecodeConstants ConstantsOf(float bias) {
  const uint32_t low = FloatToF16(1024.0f + bias), high = FloatToF16(-64.0f - bias);
  return {.low = low | low << 16, .high = high | high << 16};
}

// Every code in every place of the tile.
TEST(LinearLayoutTest, DecodingGivesEveryCodeInEveryPlace) {
  for (uint32_t shift = 0; shift < 256; ++shift) {
    const auto code = [&](int row, int k) { return static_cast<uint32_t>(row * 5 + k * 3) + shift; };
    for (const float bias : {0.0f, 8.0f}) {
      DecodeTile<Code::kInt4>(ConstantsOf(bias), {}, code, [&](int row, int k, float v) {
        ASSERT_EQ(v, static_cast<float>(code(row, k) & 15) - bias);
      });
    }
    for (const float bias : {0.0f, 128.0f}) {
      DecodeTile<Code::kInt8>(ConstantsOf(bias), {}, code, [&](int row, int k, float v) {
        ASSERT_EQ(v, static_cast<float>(code(row, k) & 255) - bias);
      });
    }
    DecodeTile<Code::kE4M3>({}, {}, code, [&](int row, int k, float v) {
      const auto c = static_cast<uint8_t>(code(row, k));
      if (IsFiniteE4M3(c)) {
        ASSERT_EQ(v * DecodeFactor(Code::kE4M3), DecodeE4M3(c)) << int{c};
      }
    });
    DecodeTile<Code::kE5M2>({}, {}, code, [&](int row, int k, float v) {
      const auto c = static_cast<uint8_t>(code(row, k));
      if (IsFiniteE5M2(c)) {
        ASSERT_EQ(v, DecodeE5M2(c)) << int{c};
      }
    });
    DecodeTile<Code::kInt4A8>({}, {}, code, [&](int row, int k, float v) {
      const auto c = static_cast<int8_t>(static_cast<uint8_t>(code(row, k) << 4));
      ASSERT_EQ(static_cast<float>(static_cast<int8_t>(static_cast<int>(v))), static_cast<float>(c));
    });
    DecodeTile<Code::kInt8A8>({}, {}, code,
                              [&](int row, int k, float v) { ASSERT_EQ(v, static_cast<float>(code(row, k) & 255)); });
  }
}

TEST(LinearLayoutTest, PairTableGivesBothEntriesToEveryLane) {
  std::vector<uint8_t> table(kPairTableBytes);
  std::vector<float> values(16);
  for (int i = 0; i < 16; ++i) values[static_cast<size_t>(i)] = static_cast<float>(i * i) / 16.0f - 3.0f;
  for (int byte = 0; byte < 256; ++byte) {
    const uint32_t pair = FloatToF16(values[static_cast<size_t>(byte & 15)]) |
                          static_cast<uint32_t>(FloatToF16(values[static_cast<size_t>(byte >> 4)])) << 16;
    for (int lane = 0; lane < 32; ++lane) reinterpret_cast<uint32_t*>(table.data())[byte * 32 + lane] = pair;
  }
  for (uint32_t shift = 0; shift < 16; ++shift) {
    const auto code = [&](int row, int k) { return static_cast<uint32_t>(row * 7 + k) + shift; };
    DecodeTile<Code::kTable16>({}, table, code,
                               [&](int row, int k, float v) { ASSERT_EQ(v, values[code(row, k) & 15]); });
  }
}

TEST(LinearLayoutTest, NoAccessOfAWarpMeetsItselfInABank) {
  const auto lanes = [](auto fn) {
    std::vector<int64_t> out;
    for (int lane = 0; lane < 32; ++lane) out.push_back(fn(lane));
    return out;
  };
  // Codes and activations: 16 bytes a lane, in order.
  EXPECT_EQ(Conflicts(lanes([](int lane) { return lane * 16; }), 16), 1);
  // Scale records of the eight rows of a fragment, by size.
  for (const bool wide : {false, true}) {
    for (const bool offset : {false, true}) {
      const int bytes = RecordBytes(wide, offset);
      EXPECT_EQ(Conflicts(lanes([&](int lane) { return lane / 4 * bytes; }), std::max(4, bytes)), 1);
    }
  }
  // Sums or scales of two tokens.
  EXPECT_EQ(Conflicts(lanes([](int lane) { return lane % 4 * 8; }), 8), 1);
  // Every lane's own column of the table of pairs, whatever the byte.
  EXPECT_EQ(Conflicts(lanes([](int lane) { return (lane * 37 % 256) * 128 + lane * 4; }), 4), 1);
  // Accumulators into the sums of the streaming kernel, and out again by rows.
  for (int i = 0; i < 4; ++i) {
    const auto store = [&](int lane) {
      const int token = lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
      return int64_t{token * kSumStride + row} * 4;
    };
    EXPECT_EQ(Conflicts(lanes(store), 4), 1);
  }
  EXPECT_EQ(Conflicts(lanes([](int lane) { return lane * 4; }), 4), 1);
}

TEST(LinearLayoutTest, PartsCoverEveryBlockOnce) {
  for (int k_blocks = 1; k_blocks < 300; ++k_blocks) {
    for (const int row_blocks : {1, 7, 56, 592, 2376}) {
      const int slices = ChooseSlices(row_blocks, k_blocks, 132);
      ASSERT_TRUE(slices >= 1 && slices <= 16);
      int next = 0;
      for (int part = 0; part < slices * kSliceParts; ++part) {
        const BlockRange range = PartRange(k_blocks, slices * kSliceParts, part);
        ASSERT_EQ(range.begin, next);
        ASSERT_GE(range.end, range.begin);
        next = range.end;
      }
      ASSERT_EQ(next, k_blocks);
    }
  }
}

TEST(LinearLayoutTest, ProductsDivideExactly) {
  for (uint32_t d = 2; d <= 16384; d += d < 64 ? 1 : 61) {
    const uint32_t magic = DivideMagic(d);
    for (uint32_t x = 0; x < 16384; ++x) ASSERT_EQ(static_cast<uint32_t>(uint64_t{x} * magic >> 32), x / d) << x;
  }
}

TEST(LinearLayoutTest, E4M3CodesOfActivationsAreTheTables) {
  for (uint32_t bits = 0; bits < 0xffff0000u; bits += 0x2f3d) {
    const float value = FloatOf(bits);
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(CodeOfE4M3(value, bits), EncodeE4M3(value)) << value;
  }
  for (int code = 0; code < 256; ++code) {
    if (!IsFiniteE4M3(static_cast<uint8_t>(code))) continue;
    const float value = DecodeE4M3(static_cast<uint8_t>(code));
    for (const float v : {value, std::nextafter(value, 1e9f), std::nextafter(value, -1e9f)}) {
      ASSERT_EQ(CodeOfE4M3(v, BitsOf(v)), EncodeE4M3(v)) << v;
    }
    const float next = DecodeE4M3(static_cast<uint8_t>(std::min(code & 127, 125) + 1));
    const float half = (DecodeE4M3(static_cast<uint8_t>(std::min(code & 127, 125))) + next) / 2;
    ASSERT_EQ(CodeOfE4M3(half, BitsOf(half)), EncodeE4M3(half)) << half;
  }
  EXPECT_EQ(CodeOfE4M3(500.0f, BitsOf(500.0f)), 0x7e);
}

TEST(LinearLayoutTest, HalvesRoundToEven) {
  for (const float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.5f, -127.5f, 0.49999997f, 1e9f, -3e9f, 0.0f}) {
    EXPECT_EQ(RoundEven(x), std::nearbyint(x)) << x;
  }
}

}  // namespace
}  // namespace sage::cuda
