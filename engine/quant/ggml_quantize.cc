// ggml's reference quantizers of Q4_0, Q4_1 and Q8_0: codes are computed with the f32 scale, which is stored as f16.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/ggml_blocks.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

// Truncates to 0..15; also safe when a subnormal scale made the position infinite or NaN.
uint8_t Nibble(float position) {
  if (!(position >= 0.0f)) return 0;
  return position >= 15.0f ? 15 : static_cast<uint8_t>(position);
}

bool PutHalf(float value, uint8_t* out) {
  const uint16_t bits = FloatToF16(value);
  std::memcpy(out, &bits, sizeof(bits));
  return (bits & 0x7c00u) != 0x7c00u;
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

}  // namespace

absl::Status QuantizeBlocks(GgmlType type, const float* values, int64_t n, uint8_t* out) {
  bool (*quantize)(const float*, uint8_t*) = type == GgmlType::kQ4_0   ? QuantizeQ4_0
                                             : type == GgmlType::kQ4_1 ? QuantizeQ4_1
                                             : type == GgmlType::kQ8_0 ? QuantizeQ8_0
                                                                       : nullptr;
  const GgmlTypeInfo* layout = FindGgmlType(type);
  if (quantize == nullptr || n < 0 || n % layout->block != 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "CANNOT_WRITE_BLOCKS",
                     absl::StrCat("ggml blocks: must be q4_0, q4_1 or q8_0 and whole blocks of 32, got type id ",
                                  static_cast<uint32_t>(type), " and ", n, " values"));
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

}  // namespace sage
