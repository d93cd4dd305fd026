// Decoding of ggml blocks. One decoder a type yields codes, scales and offsets; dequantization is built on it, so that
// the repacked form and the plain one cannot differ.
#include "engine/quant/ggml_blocks.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

using Half = uint16_t;
struct Q4_0 {
  Half d;
  uint8_t qs[16];
};
struct Q4_1 {
  Half d, m;
  uint8_t qs[16];
};
struct Q5_0 {
  Half d;
  uint8_t qh[4], qs[16];
};
struct Q5_1 {
  Half d, m;
  uint8_t qh[4], qs[16];
};
struct Q8_0 {
  Half d;
  int8_t qs[32];
};
struct Q2_K {
  uint8_t scales[16], qs[64];
  Half d, dmin;
};
struct Q3_K {
  uint8_t hmask[32], qs[64], scales[12];
  Half d;
};
struct Q4_K {
  Half d, dmin;
  uint8_t scales[12], qs[128];
};
struct Q5_K {
  Half d, dmin;
  uint8_t scales[12], qh[32], qs[128];
};
struct Q6_K {
  uint8_t ql[128], qh[64];
  int8_t scales[16];
  Half d;
};
struct Iq4Nl {
  Half d;
  uint8_t qs[16];
};
struct Iq4Xs {
  Half d;
  uint16_t scales_h;
  uint8_t scales_l[4], qs[128];
};
static_assert(sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 && sizeof(Q5_0) == 22 && sizeof(Q5_1) == 24);
static_assert(sizeof(Q8_0) == 34 && sizeof(Q2_K) == 84 && sizeof(Q3_K) == 110 && sizeof(Q4_K) == 144);
static_assert(sizeof(Q5_K) == 176 && sizeof(Q6_K) == 210 && sizeof(Iq4Nl) == 18 && sizeof(Iq4Xs) == 136);

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

constexpr GgmlTypeInfo kTypes[] = {
    {GgmlType::kF32, "f32", 1, 4, 0, false},           {GgmlType::kF16, "f16", 1, 2, 0, false},
    {GgmlType::kBF16, "bf16", 1, 2, 0, false},         {GgmlType::kQ4_0, "q4_0", 32, 18, 32, false},
    {GgmlType::kQ4_1, "q4_1", 32, 20, 32, true},       {GgmlType::kQ5_0, "q5_0", 32, 22, 32, false},
    {GgmlType::kQ5_1, "q5_1", 32, 24, 32, true},       {GgmlType::kQ8_0, "q8_0", 32, 34, 32, false},
    {GgmlType::kQ2_K, "q2_k", 256, 84, 16, true},      {GgmlType::kQ3_K, "q3_k", 256, 110, 16, false},
    {GgmlType::kQ4_K, "q4_k", 256, 144, 32, true},     {GgmlType::kQ5_K, "q5_k", 256, 176, 32, true},
    {GgmlType::kQ6_K, "q6_k", 256, 210, 16, false},    {GgmlType::kIQ4_NL, "iq4_nl", 32, 18, 32, false},
    {GgmlType::kIQ4_XS, "iq4_xs", 256, 136, 32, false}};

// One block taken apart; `offset` is written for types that have one.
struct Parts {
  int8_t codes[256];
  float scale[16];
  float offset[16];
};

void Decode(const Q4_0& b, Parts* p) {
  p->scale[0] = F16ToFloat(b.d);
  for (int j = 0; j < 16; ++j) {
    p->codes[j] = static_cast<int8_t>((b.qs[j] & 15) - 8);
    p->codes[j + 16] = static_cast<int8_t>((b.qs[j] >> 4) - 8);
  }
}

void Decode(const Q4_1& b, Parts* p) {
  p->scale[0] = F16ToFloat(b.d);
  p->offset[0] = F16ToFloat(b.m);
  for (int j = 0; j < 16; ++j) {
    p->codes[j] = static_cast<int8_t>(b.qs[j] & 15);
    p->codes[j + 16] = static_cast<int8_t>(b.qs[j] >> 4);
  }
}

// The fifth bit of value j is bit j of qh.
void Decode5(const uint8_t* qh, const uint8_t* qs, int minus, int8_t* codes) {
  uint32_t high;
  std::memcpy(&high, qh, sizeof(high));
  for (int j = 0; j < 16; ++j) {
    codes[j] = static_cast<int8_t>(((qs[j] & 15) | (((high >> j) & 1) << 4)) - minus);
    codes[j + 16] = static_cast<int8_t>(((qs[j] >> 4) | (((high >> (j + 16)) & 1) << 4)) - minus);
  }
}

void Decode(const Q5_0& b, Parts* p) {
  p->scale[0] = F16ToFloat(b.d);
  Decode5(b.qh, b.qs, 16, p->codes);
}

void Decode(const Q5_1& b, Parts* p) {
  p->scale[0] = F16ToFloat(b.d);
  p->offset[0] = F16ToFloat(b.m);
  Decode5(b.qh, b.qs, 0, p->codes);
}

void Decode(const Q8_0& b, Parts* p) {
  p->scale[0] = F16ToFloat(b.d);
  std::memcpy(p->codes, b.qs, 32);
}

// Two-bit codes: values 32 j .. 32 j + 31 of a 128-half are the bits [2 j, 2 j + 2) of its 32 bytes.
void Decode(const Q2_K& b, Parts* p) {
  const float d = F16ToFloat(b.d), dmin = F16ToFloat(b.dmin);
  for (int g = 0; g < 16; ++g) {
    p->scale[g] = d * static_cast<float>(b.scales[g] & 15);
    p->offset[g] = -(dmin * static_cast<float>(b.scales[g] >> 4));
  }
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, j = (i % 128) / 32;
    p->codes[i] = static_cast<int8_t>((b.qs[half * 32 + i % 32] >> (2 * j)) & 3);
  }
}

// Sixteen 6-bit scales: low four bits in bytes 0..7 (low nibbles first), high two bits in bytes 8..11.
void Decode(const Q3_K& b, Parts* p) {
  const float d = F16ToFloat(b.d);
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? b.scales[g] & 15 : b.scales[g - 8] >> 4;
    const int high = (b.scales[8 + g % 4] >> (2 * (g / 4))) & 3;
    p->scale[g] = d * static_cast<float>((low | (high << 4)) - 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, j = (i % 128) / 32, l = i % 32;
    const int low = (b.qs[half * 32 + l] >> (2 * j)) & 3;
    p->codes[i] = static_cast<int8_t>(low - ((b.hmask[l] >> (half * 4 + j)) & 1 ? 0 : 4));
  }
}

// Eight 6-bit scales and minimums in 12 bytes.
void DecodeScales(const uint8_t* s, float d, float dmin, Parts* p) {
  for (int j = 0; j < 8; ++j) {
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
    const int minimum = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
    p->scale[j] = d * static_cast<float>(scale);
    p->offset[j] = -(dmin * static_cast<float>(minimum));
  }
}

void Decode(const Q4_K& b, Parts* p) {
  DecodeScales(b.scales, F16ToFloat(b.d), F16ToFloat(b.dmin), p);
  for (int i = 0; i < 256; ++i) {
    const uint8_t byte = b.qs[i / 64 * 32 + i % 32];
    p->codes[i] = static_cast<int8_t>(i % 64 < 32 ? byte & 15 : byte >> 4);
  }
}

void Decode(const Q5_K& b, Parts* p) {
  DecodeScales(b.scales, F16ToFloat(b.d), F16ToFloat(b.dmin), p);
  for (int i = 0; i < 256; ++i) {
    const uint8_t byte = b.qs[i / 64 * 32 + i % 32];
    const int high = (b.qh[i % 32] >> (i / 32)) & 1;
    p->codes[i] = static_cast<int8_t>((i % 64 < 32 ? byte & 15 : byte >> 4) | (high << 4));
  }
}

void Decode(const Q6_K& b, Parts* p) {
  const float d = F16ToFloat(b.d);
  for (int g = 0; g < 16; ++g) p->scale[g] = d * static_cast<float>(b.scales[g]);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = (i % 128) / 32, l = i % 32;
    const uint8_t low = b.ql[half * 64 + (quarter & 1) * 32 + l];
    const int high = (b.qh[half * 32 + l] >> (2 * quarter)) & 3;
    p->codes[i] = static_cast<int8_t>(((quarter < 2 ? low & 15 : low >> 4) | (high << 4)) - 32);
  }
}

void Decode(const Iq4Nl& b, Parts* p) {
  p->scale[0] = F16ToFloat(b.d);
  for (int j = 0; j < 16; ++j) {
    p->codes[j] = kIq4Values[b.qs[j] & 15];
    p->codes[j + 16] = kIq4Values[b.qs[j] >> 4];
  }
}

void Decode(const Iq4Xs& b, Parts* p) {
  const float d = F16ToFloat(b.d);
  for (int g = 0; g < 8; ++g) {
    const int low = (b.scales_l[g / 2] >> (4 * (g % 2))) & 15;
    const int high = (b.scales_h >> (2 * g)) & 3;
    p->scale[g] = d * static_cast<float>((low | (high << 4)) - 32);
    for (int j = 0; j < 16; ++j) {
      p->codes[g * 32 + j] = kIq4Values[b.qs[g * 16 + j] & 15];
      p->codes[g * 32 + j + 16] = kIq4Values[b.qs[g * 16 + j] >> 4];
    }
  }
}

template <typename Block>
void DecodeAt(const uint8_t* src, Parts* parts) {
  Block block;  // blocks of 18, 22, 34, ... bytes are not aligned in a row
  std::memcpy(&block, src, sizeof(block));
  Decode(block, parts);
}

using DecodeFn = void (*)(const uint8_t*, Parts*);
DecodeFn DecoderOf(GgmlType type) {
  switch (type) {
    case GgmlType::kQ4_0:
      return DecodeAt<Q4_0>;
    case GgmlType::kQ4_1:
      return DecodeAt<Q4_1>;
    case GgmlType::kQ5_0:
      return DecodeAt<Q5_0>;
    case GgmlType::kQ5_1:
      return DecodeAt<Q5_1>;
    case GgmlType::kQ8_0:
      return DecodeAt<Q8_0>;
    case GgmlType::kQ2_K:
      return DecodeAt<Q2_K>;
    case GgmlType::kQ3_K:
      return DecodeAt<Q3_K>;
    case GgmlType::kQ4_K:
      return DecodeAt<Q4_K>;
    case GgmlType::kQ5_K:
      return DecodeAt<Q5_K>;
    case GgmlType::kQ6_K:
      return DecodeAt<Q6_K>;
    case GgmlType::kIQ4_NL:
      return DecodeAt<Iq4Nl>;
    case GgmlType::kIQ4_XS:
      return DecodeAt<Iq4Xs>;
    default:
      return nullptr;
  }
}

absl::Status CheckCount(GgmlType type, const GgmlTypeInfo* layout, int64_t n) {
  if (layout == nullptr) {
    return MakeError(absl::StatusCode::kUnimplemented, "UNKNOWN_GGML_TYPE",
                     absl::StrCat("ggml type: must be one this engine reads, got id ", static_cast<uint32_t>(type)));
  }
  if (n < 0 || n % layout->block != 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "ROW_NOT_WHOLE_BLOCKS",
                     absl::StrCat("ggml ", std::string(layout->name), ": values must be a multiple of ", layout->block,
                                  ", got ", n));
  }
  return absl::OkStatus();
}

}  // namespace

const GgmlTypeInfo* FindGgmlType(GgmlType type) {
  for (const GgmlTypeInfo& layout : kTypes) {
    if (layout.type == type) return &layout;
  }
  return nullptr;
}

const GgmlTypeInfo* FindGgmlType(std::string_view name) {
  for (const GgmlTypeInfo& layout : kTypes) {
    if (layout.name == name) return &layout;
  }
  return nullptr;
}

int64_t GgmlRowBytes(GgmlType type, int64_t K) {
  const GgmlTypeInfo* layout = FindGgmlType(type);
  if (layout == nullptr || K < 0 || K % layout->block != 0) return -1;
  return K / layout->block * layout->bytes;
}

absl::Status DequantizeBlocks(GgmlType type, const uint8_t* src, int64_t n, float* out) {
  const GgmlTypeInfo* layout = FindGgmlType(type);
  SAGE_RETURN_IF_ERROR(CheckCount(type, layout, n));
  if (type == GgmlType::kF32) {
    std::memcpy(out, src, static_cast<size_t>(n) * sizeof(float));
    return absl::OkStatus();
  }
  const DecodeFn decode = DecoderOf(type);
  if (decode == nullptr) {  // F16 and BF16
    for (int64_t i = 0; i < n; ++i) {
      uint16_t bits;
      std::memcpy(&bits, src + i * 2, sizeof(bits));
      out[i] = type == GgmlType::kF16 ? F16ToFloat(bits) : BF16ToFloat(bits);
    }
    return absl::OkStatus();
  }
  Parts parts;
  for (int64_t begin = 0; begin < n; begin += layout->block, src += layout->bytes) {
    decode(src, &parts);
    for (int i = 0; i < layout->block; ++i) {
      const int g = i / layout->group;
      const float product = parts.scale[g] * static_cast<float>(parts.codes[i]);
      out[begin + i] = layout->has_offset ? product + parts.offset[g] : product;
    }
  }
  return absl::OkStatus();
}

absl::Status RepackToAffine8(GgmlType type, const uint8_t* src, int64_t n, int8_t* codes, float* scale, float* offset) {
  const GgmlTypeInfo* layout = FindGgmlType(type);
  SAGE_RETURN_IF_ERROR(CheckCount(type, layout, n));
  const DecodeFn decode = DecoderOf(type);
  if (decode == nullptr || (layout->has_offset && offset == nullptr)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "NO_AFFINE_FORM",
                     absl::StrCat("ggml ", std::string(layout->name),
                                  decode == nullptr ? ": must be a quantized type" : ": offsets must be asked for"));
  }
  const int groups = layout->block / layout->group;
  Parts parts;
  for (int64_t begin = 0; begin < n; begin += layout->block, src += layout->bytes) {
    decode(src, &parts);
    std::memcpy(codes + begin, parts.codes, static_cast<size_t>(layout->block));
    std::memcpy(scale, parts.scale, static_cast<size_t>(groups) * sizeof(float));
    scale += groups;
    if (layout->has_offset) {
      std::memcpy(offset, parts.offset, static_cast<size_t>(groups) * sizeof(float));
      offset += groups;
    }
  }
  return absl::OkStatus();
}

}  // namespace sage
