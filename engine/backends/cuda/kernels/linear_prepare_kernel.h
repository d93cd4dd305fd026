// Activations as operand B of the linear kernels, straight from what produced them: rows as they are, a normed row, or
// a gated product. One block a row; sums and maxima have an order that depends on K alone. See linear_rows.h.
#pragma once

#include "engine/backends/cuda/kernels/linear_device.h"
#include "engine/backends/cuda/kernels/linear_rows.h"

namespace sage::cuda {

// e4m3 from f32, half to even, saturating; NaN stays NaN. Plain arithmetic: the same on every device and the host.
SAGE_HD uint8_t CodeOfE4M3(float value, uint32_t bits) {
  const uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7f);
  if (magnitude >= 0x43e80000u) return static_cast<uint8_t>(sign | 0x7e);    // from 464 on everything rounds past 448
  if (magnitude < 0x3c800000u) {                                             // below 2^-6: whole multiples of 2^-9
    const float steps = (value < 0 ? -value : value) * 512.0f + 8388608.0f;  // adding 2^23 rounds half to even
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(steps - 8388608.0f));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  const uint32_t code = (rounded >> 20) - (120u << 3);
  return static_cast<uint8_t>(sign | (code > 0x7eu ? 0x7eu : code));
}

// Half to even, as the host's nearbyint.
SAGE_HD float RoundEven(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23
  return x > 4194304.0f || x < -4194304.0f ? x : (x + magic) - magic;
}

template <RowSource kSource>
SAGE_DEVICE float RowValueAt(const PrepareArgs& p, int64_t m, int place, float norm) {
  const int k = p.order == nullptr ? place : p.order[place];
  if (k < 0) return 0.0f;
  const float x = p.x[m * p.x_stride + k];
  if constexpr (kSource == RowSource::kRmsNorm) return MulRn(MulRn(x, norm), p.other[k]);
  if constexpr (kSource == RowSource::kSiluMul) {
    return x / (1.0f + Exp2(-1.4426950408889634f * x)) * p.other[m * p.other_stride + k];
  }
  return x;
}

// Of all threads, in a fixed order; `parts` is 8 words of shared memory.
SAGE_DEVICE float BlockSum(float value, float* parts) {
  for (int mask = 16; mask > 0; mask /= 2) value = AddRn(value, ShuffleXor(value, mask));
  if (Thread() % 32 == 0) parts[Thread() / 32] = value;
  SyncThreads();
  float all = 0;
  for (int w = 0; w < kPrepareThreads / 32; ++w) all = AddRn(all, parts[w]);
  SyncThreads();
  return all;
}
SAGE_DEVICE uint32_t BlockMax(uint32_t value, uint32_t* parts) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  if (Thread() % 32 == 0) parts[Thread() / 32] = value;
  SyncThreads();
  uint32_t all = 0;
  for (int w = 0; w < kPrepareThreads / 32; ++w) all = parts[w] > all ? parts[w] : all;
  SyncThreads();
  return all;
}

// The number that values are divided by (kInt8, kE4M3) or multiplied with (kF16), and the token's scale.
struct RowScale {
  float apply = 1, token = 1;
};
template <RowForm kForm>
SAGE_DEVICE RowScale ScaleOfRow(const PrepareArgs& p, uint32_t amax_bits) {
  const bool finite = amax_bits < 0x7f800000u;
  const float amax = FloatOf(amax_bits), nan = FloatOf(0x7fc00000u);
  RowScale scale;
  if constexpr (kForm == RowForm::kF16) {
    // 2^(14 - e) for amax in 2^e .. 2^(e+1); e is kept where both powers are normal numbers.
    int exponent = static_cast<int>(amax_bits >> 23) - 127;
    exponent = exponent < -100 ? -100 : exponent;
    if (amax_bits != 0)
      scale = {FloatOf(static_cast<uint32_t>(141 - exponent) << 23),
               FloatOf(static_cast<uint32_t>(exponent + 113) << 23)};
  } else if constexpr (kForm == RowForm::kInt8) {
    const float own = p.static_scale > 0 ? p.static_scale : DivRn(amax, 127.5f);
    scale = {own > 0 ? own : 1.0f, own};
  } else {
    const float own = DivRn(amax, kMostE4M3);
    scale.apply = p.static_scale > 0 ? p.static_scale : own > kLeastTokenScale ? own : kLeastTokenScale;
    scale.token = p.scale_group > 0 ? 1.0f : scale.apply;
  }
  if (!finite) scale.token = nan;
  return scale;
}

// Writes the 16 codes of places [place, place + 16); returns their sum.
template <RowForm kForm>
SAGE_DEVICE float StoreCodes(const PrepareArgs& p, int64_t m, int place, const float (&x)[kPrepareInputs],
                             float apply) {
  float sum = 0;
  constexpr Code kCode = kForm == RowForm::kF16 ? Code::kInt4 : Code::kInt8A8;
  constexpr int kEach = kForm == RowForm::kF16 ? 4 : 8;  // neighbours of one lane: 8 bytes
  SAGE_UNROLL
  for (int i = 0; i < kPrepareInputs; i += kEach) {
    uint32_t words[2] = {0, 0};
    SAGE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      uint32_t code = 0;
      if constexpr (kForm == RowForm::kF16) {
        code = HalfOf(MulRn(x[i + e], apply));
        sum = AddRn(sum, HalfToFloat(static_cast<uint16_t>(code)));
      } else if constexpr (kForm == RowForm::kInt8) {
        float whole = RoundEven(DivRn(x[i + e], apply)) + static_cast<float>(p.zero);
        whole = whole > 127.0f ? 127.0f : whole > -128.0f ? whole : -128.0f;
        code = static_cast<uint32_t>(static_cast<int>(whole)) & 255u;
        sum = AddRn(sum, whole);
      } else {
        const float value = DivRn(x[i + e], apply);
        code = CodeOfE4M3(value, BitsOf(value));
      }
      words[e * 2 / kEach] |= code << (e % (kEach / 2) * (64 / kEach));
    }
    const int64_t at = p.row_bytes > 0 ? m * p.row_bytes + place + i
                                       : static_cast<int64_t>(ActivationByte(kCode, p.tiles, m, place + i));
    if (p.row_bytes > 0 && place + i >= p.row_bytes) continue;
    auto* to = reinterpret_cast<uint32_t*>(p.codes + at);
    to[0] = words[0];
    to[1] = words[1];
  }
  return sum;
}

// Scale of the group of inputs that begins at `begin`.
template <RowSource kSource>
SAGE_DEVICE float GroupScale(const PrepareArgs& p, int64_t m, int64_t begin, float norm) {
  float amax = kLeastGroupAmax;
  const int64_t end = begin + p.scale_group < p.K ? begin + p.scale_group : p.K;
  for (int64_t k = begin; k < end; ++k) {
    const float x = std::fabs(RowValueAt<kSource>(p, m, static_cast<int>(k), norm));
    amax = x > amax ? x : amax;
  }
  return DivRn(amax, kMostE4M3);
}

template <RowForm kForm, RowSource kSource>
SAGE_KERNEL(kPrepareThreads, 4)
void PrepareRows(const SAGE_GRID_CONSTANT PrepareArgs p) {
  auto* const parts = reinterpret_cast<float*>(SharedMemory());  // 8 words, then a sum for every 16 places
  float* const sums = parts + kPrepareThreads / 32;
  const int64_t m = BlockX();
  float norm = 1;
  if constexpr (kSource == RowSource::kRmsNorm) {
    float squares = 0;
    for (int k = Thread(); k < p.K; k += kPrepareThreads) {
      const float x = p.x[m * p.x_stride + k];
      squares = AddRn(squares, MulRn(x, x));
    }
    norm = 1.0f / sqrtf(DivRn(BlockSum(squares, parts), static_cast<float>(p.K)) + p.eps);
  }
  uint32_t most = 0;  // bits of magnitudes order as integers, NaN above infinity
  for (int place = Thread(); place < p.places; place += kPrepareThreads) {
    const uint32_t bits = BitsOf(RowValueAt<kSource>(p, m, place, norm)) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  const RowScale scale = ScaleOfRow<kForm>(p, BlockMax(most, reinterpret_cast<uint32_t*>(parts)));
  if (Thread() == 0) p.token_scale[m] = scale.token;
  const int pieces = p.k_blocks * (kBlockInputs / kPrepareInputs);
  for (int piece = Thread(); piece < pieces; piece += kPrepareThreads) {
    const int place = piece * kPrepareInputs;
    float x[kPrepareInputs];
    SAGE_UNROLL
    for (int i = 0; i < kPrepareInputs; ++i) {
      x[i] = place + i < p.places ? RowValueAt<kSource>(p, m, place + i, norm) : 0.0f;
    }
    float apply = scale.apply;
    if (kForm == RowForm::kE4M3 && p.scale_group > 0) {
      apply = place < p.K ? GroupScale<kSource>(p, m, place / p.scale_group * p.scale_group, norm) : 1.0f;
      sums[piece] = apply;
      StoreCodes<kForm>(p, m, place, x, apply);
    } else {
      sums[piece] = StoreCodes<kForm>(p, m, place, x, apply);
    }
  }
  if (p.chunks == 0) return;
  SyncThreads();
  const int each = kBlockInputs / kPrepareInputs / p.chunks;
  for (int c = Thread(); c < p.k_blocks * p.chunks; c += kPrepareThreads) {
    float sum = sums[c * each];
    if (kForm != RowForm::kE4M3) {
      for (int i = 1; i < each; ++i) sum = AddRn(sum, sums[c * each + i]);
    }
    p.chunk[static_cast<int64_t>(c) * p.tiles * kTokenTile + m] = sum;
  }
}

}  // namespace sage::cuda
