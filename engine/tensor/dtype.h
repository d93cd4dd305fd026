// Element types as they appear in checkpoint files and in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace sage {

enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kF8E4M3, kF8E5M2, kF8E8M0, kI64, kI32, kI16, kI8, kU8, kBool };

// Bytes of one element.
size_t DTypeSize(DType dtype);
// The safetensors name: "F32", "BF16", "F8_E4M3", ...
std::string_view DTypeName(DType dtype);
std::optional<DType> ParseDType(std::string_view safetensors_name);

}  // namespace sage
