// Writes llama.cpp's keys (gguf-py constants.py, docs/gguf.md).
#include "engine/runtime/gguf_keys.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

absl::Status CannotHold(const std::string& what) {
  return MakeError(absl::StatusCode::kUnimplemented, "GGUF_CANNOT_HOLD", absl::StrCat("gguf: ", what));
}

}  // namespace

absl::StatusOr<std::string> GgufArchitecture(const DecoderConfig& config) {
  for (const int64_t window : config.window) {
    if (window > 0 && window < config.max_position) {
      return CannotHold(absl::StrCat("llama.cpp's ", config.architecture,
                                     " attends to all positions, the model has a sliding window of ", window));
    }
  }
  if (config.rope.kind == "dynamic") return CannotHold("there is no dynamic NTK scaling of rotary positions");
  if (config.rope.kind == "yarn" && (config.rope.mscale != 0 || config.rope.mscale_all_dim != 0)) {
    return CannotHold("there is no mscale for yarn outside DeepSeek's architecture");
  }
  if (config.architecture == "mistral" || config.architecture == "llama") return std::string("llama");
  if (config.architecture == "qwen2" || config.architecture == "qwen3") return config.architecture;
  return CannotHold(absl::StrCat("architecture must be llama, mistral, qwen2 or qwen3, got ", config.architecture));
}

absl::Status AddModelKeys(const DecoderConfig& config, const std::string& name, uint32_t file_type, GgufKeys& keys) {
  SAGE_ASSIGN_OR_RETURN(const std::string arch, GgufArchitecture(config));
  const auto size = [&](const char* key, int64_t value) {
    keys.AddU32(absl::StrCat(arch, ".", key), static_cast<uint32_t>(value));
  };
  keys.AddString("general.architecture", arch);
  keys.AddString("general.type", "model");
  keys.AddString("general.name", name);
  keys.AddU32("general.file_type", file_type);
  keys.AddU32("general.quantization_version", 2);
  size("block_count", config.L);
  size("context_length", config.max_position);
  size("embedding_length", config.hidden);
  size("feed_forward_length", config.ffn);
  size("attention.head_count", config.H);
  size("attention.head_count_kv", config.KH);
  size("attention.key_length", config.D);
  size("attention.value_length", config.D);
  size("rope.dimension_count", config.D);
  size("vocab_size", config.V);
  keys.AddF32(arch + ".attention.layer_norm_rms_epsilon", static_cast<float>(config.norm_eps));
  keys.AddF32(arch + ".rope.freq_base", static_cast<float>(config.rope.theta));
  if (config.rope.kind == "linear" || config.rope.kind == "yarn") {
    keys.AddString(arch + ".rope.scaling.type", config.rope.kind);
    keys.AddF32(arch + ".rope.scaling.factor", static_cast<float>(config.rope.factor));
    size("rope.scaling.original_context_length", config.rope.original_max_position);
  }
  return absl::OkStatus();
}

std::vector<float> GgufRopeFactors(const DecoderConfig& config) {
  const RopeSpec& rope = config.rope;
  if (rope.kind != "llama3") return rope.freq_factors;
  // The rule by wave length: short ones stay, long ones are divided, those between by a blend of both.
  std::vector<float> out(static_cast<size_t>(config.D / 2), 1.0f);
  const double original = static_cast<double>(rope.original_max_position);
  for (size_t i = 0; i < out.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / config.D;
    const double wavelength = 2.0 * 3.14159265358979323846 * std::pow(rope.theta, exponent);
    if (wavelength < original / rope.high_freq_factor) continue;
    if (wavelength > original / rope.low_freq_factor) {
      out[i] = static_cast<float>(rope.factor);
      continue;
    }
    const double smooth =
        (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    out[i] = static_cast<float>(1.0 / ((1.0 - smooth) / rope.factor + smooth));
  }
  return out;
}

int64_t GgufSourceRow(int64_t n, int64_t D) {
  const int64_t head = n / D, r = n % D;
  return head * D + (r % 2) * (D / 2) + r / 2;
}

std::vector<uint8_t> PermuteRows(const std::vector<uint8_t>& rows, int64_t N, int64_t D) {
  std::vector<uint8_t> out(rows.size());
  const size_t bytes = rows.size() / static_cast<size_t>(N);
  for (int64_t n = 0; n < N; ++n) {
    std::memcpy(out.data() + static_cast<size_t>(n) * bytes,
                rows.data() + static_cast<size_t>(GgufSourceRow(n, D)) * bytes, bytes);
  }
  return out;
}

}  // namespace sage
