// Quantizers of ggml blocks. Of 32 values (Q4_0, Q4_1, Q5_0, Q8_0): codes are computed with the f32 scale, which is
// stored as f16. Codes that exist already are put into blocks without rounding, or refused.
#include "engine/quant/ggml_quantize.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/ggml_blocks.h"
#include "engine/tensor/float_convert.h"

namespace sage {

bool ggml::PutHalf(float value, uint8_t* out) {
  const uint16_t bits = FloatToF16(value);
  std::memcpy(out, &bits, sizeof(bits));
  return (bits & 0x7c00u) != 0x7c00u;
}

namespace {

using ggml::PutHalf;

// Truncates to 0..15; also safe when a subnormal scale made the position infinite or NaN.
uint8_t Nibble(float position) {
  if (!(position >= 0.0f)) return 0;
  return position >= 15.0f ? 15 : static_cast<uint8_t>(position);
}

bool QuantizeQ4_0(const float* x, uint8_t* out) {
  float amax = 0.0f, extreme = 0.0f;
  for (int j = 0; j < 32; ++j) {
    if (amax < std::fabs(x[j])) {
      amax = std::fabs(x[j]);
      extreme = x[j];
    }
  }
  const float d = extreme / -8.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int j = 0; j < 16; ++j) {
    out[2 + j] = static_cast<uint8_t>(Nibble(x[j] * inverse + 8.5f) | (Nibble(x[j + 16] * inverse + 8.5f) << 4));
  }
  return PutHalf(d, out);
}

bool QuantizeQ4_1(const float* x, uint8_t* out) {
  float min = FLT_MAX, max = -FLT_MAX;
  for (int j = 0; j < 32; ++j) {
    min = std::min(min, x[j]);
    max = std::max(max, x[j]);
  }
  const float d = (max - min) / 15.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int j = 0; j < 16; ++j) {
    const uint8_t low = Nibble((x[j] - min) * inverse + 0.5f);
    const uint8_t high = Nibble((x[j + 16] - min) * inverse + 0.5f);
    out[4 + j] = static_cast<uint8_t>(low | (high << 4));
  }
  const bool scale_fits = PutHalf(d, out);
  return PutHalf(min, out + 2) && scale_fits;
}

// The fifth bit of value j is bit j of a 32-bit word.
bool QuantizeQ5_0(const float* x, uint8_t* out) {
  float amax = 0.0f, extreme = 0.0f;
  for (int j = 0; j < 32; ++j) {
    if (amax < std::fabs(x[j])) {
      amax = std::fabs(x[j]);
      extreme = x[j];
    }
  }
  const float d = extreme / -16.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  uint32_t high = 0;
  std::memset(out + 6, 0, 16);
  for (int j = 0; j < 32; ++j) {
    const float position = x[j] * inverse + 16.5f;
    const uint32_t code = !(position >= 0.0f) ? 0 : position >= 31.0f ? 31 : static_cast<uint32_t>(position);
    out[6 + j % 16] = static_cast<uint8_t>(out[6 + j % 16] | ((code & 15) << (j < 16 ? 0 : 4)));
    high |= (code >> 4) << j;
  }
  std::memcpy(out + 2, &high, sizeof(high));
  return PutHalf(d, out);
}

bool QuantizeQ8_0(const float* x, uint8_t* out) {
  float amax = 0.0f;
  for (int j = 0; j < 32; ++j) amax = std::max(amax, std::fabs(x[j]));
  const float d = amax / 127.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int j = 0; j < 32; ++j) {
    const float position = std::round(x[j] * inverse);  // half away from zero, as ggml
    const float bounded = position >= -127.0f ? std::min(position, 127.0f) : -127.0f;
    out[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(bounded));
  }
  return PutHalf(d, out);
}

using QuantizeFn = bool (*)(const float*, uint8_t*);
QuantizeFn QuantizerOf(GgmlType type) {
  switch (type) {
    case GgmlType::kQ4_0:
      return QuantizeQ4_0;
    case GgmlType::kQ4_1:
      return QuantizeQ4_1;
    case GgmlType::kQ5_0:
      return QuantizeQ5_0;
    case GgmlType::kQ8_0:
      return QuantizeQ8_0;
    case GgmlType::kQ4_K:
      return ggml::QuantizeQ4K;
    case GgmlType::kQ6_K:
      return ggml::QuantizeQ6K;
    default:
      return nullptr;
  }
}

// True when f16 keeps the value: then the product with a small integer is the same in every block type.
bool ExactHalf(float value, uint8_t* out) {
  uint16_t bits;
  if (!PutHalf(value, out)) return false;
  std::memcpy(&bits, out, sizeof(bits));
  return F16ToFloat(bits) == value;
}

bool PutNibbles(const int16_t* codes, int shift, uint8_t* out) {
  for (int j = 0; j < 16; ++j) {
    const int low = codes[j] + shift, high = codes[j + 16] + shift;
    if (low < 0 || low > 15 || high < 0 || high > 15) return false;
    out[j] = static_cast<uint8_t>(low | (high << 4));
  }
  return true;
}

bool PutBytes(const int16_t* codes, uint8_t* out) {
  for (int j = 0; j < 32; ++j) {
    if (codes[j] < -128 || codes[j] > 127) return false;
    out[j] = static_cast<uint8_t>(static_cast<int8_t>(codes[j]));
  }
  return true;
}

}  // namespace

absl::Status QuantizeBlocks(GgmlType type, const float* values, int64_t n, uint8_t* out) {
  const QuantizeFn quantize = QuantizerOf(type);
  const GgmlTypeInfo* layout = FindGgmlType(type);
  if (quantize == nullptr || n < 0 || n % layout->block != 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "CANNOT_WRITE_BLOCKS",
                     absl::StrCat("ggml blocks: must be q4_0, q4_1, q5_0, q8_0, q4_k or q6_k and whole blocks, got ",
                                  layout == nullptr ? absl::StrCat("type id ", static_cast<uint32_t>(type))
                                                    : std::string(layout->name),
                                  " and ", n, " values"));
  }
  for (int64_t begin = 0; begin < n; begin += layout->block, out += layout->bytes) {
    if (!quantize(values + begin, out)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "SCALE_OUT_OF_RANGE",
                       absl::StrCat("ggml ", std::string(layout->name), ": the scale must fit f16, values ", begin,
                                    " .. ", begin + layout->block - 1, " are too large"));
    }
  }
  return absl::OkStatus();
}

namespace {

bool Encode(GgmlType type, const int16_t* codes, float scale, int zero, bool (*put)(float, uint8_t*), uint8_t* out) {
  switch (type) {
    case GgmlType::kQ4_0:
      return put(scale, out) && PutNibbles(codes, 8, out + 2);
    case GgmlType::kQ4_1:  // w = d (code + zero) - d zero
      return put(scale, out) && put(0.0f - scale * static_cast<float>(zero), out + 2) &&
             PutNibbles(codes, zero, out + 4);
    case GgmlType::kQ8_0:
      return put(scale, out) && PutBytes(codes, out + 2);
    default:
      return false;
  }
}

}  // namespace

bool EncodeBlock(GgmlType type, const int16_t* codes, float scale, int zero, uint8_t* out) {
  return Encode(type, codes, scale, zero, ExactHalf, out);
}
bool ggml::EncodeBlockRounded(GgmlType type, const int16_t* codes, float scale, int zero, uint8_t* out) {
  return Encode(type, codes, scale, zero, PutHalf, out);
}

}  // namespace sage
