// Blocks of the ggml types that are written, beyond what ggml_blocks.h offers everyone.
#pragma once

#include <cstdint>

#include "engine/tensor/gguf_file.h"

namespace sage::ggml {

// f16 to `out`; false when it is not finite there.
bool PutHalf(float value, uint8_t* out);

// 256 finite values to 144 and 210 bytes. False when a scale does not fit f16.
bool QuantizeQ4K(const float* x, uint8_t* out);
bool QuantizeQ6K(const float* x, uint8_t* out);

// As EncodeBlock, but the scale (and scale * zero) may be rounded to f16: the codes stay. False when a code is out of
// range or the scale is too large.
bool EncodeBlockRounded(GgmlType type, const int16_t* codes, float scale, int zero, uint8_t* out);

}  // namespace sage::ggml
