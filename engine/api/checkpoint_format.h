// Checkpoints on disk: read by canonical names as views of the map, and written. Plug-ins:
// engine/checkpoint_formats/<name>.cc.
//
// Canonical names are Hugging Face's: "model.embed_tokens.weight", "model.layers.3.self_attn.q_proj" (a linear, without
// ".weight"), "model.layers.3.input_layernorm.weight", "model.norm.weight", "lm_head".
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/linear_spec.h"
#include "engine/base/cancel.h"
#include "engine/base/json.h"

namespace sage {

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  // The Hugging Face config.json (GGUF: the equivalent made from metadata; there "sage_rope_interleaved": true says
  // that q and k rows are stored in the order for interleaved rotary pairs, as llama-architecture GGUFs are).
  virtual const Json& config() const = 0;
  virtual const Json& generation_config() const = 0;  // empty object when there is none
  virtual std::string_view format() const = 0;        // plug-in name
  virtual std::string path() const = 0;
  // Names of linear modules and of plain tensors (with ".weight"/".bias" of norms and embeddings).
  virtual std::vector<std::string> linear_names() const = 0;
  virtual std::vector<std::string> tensor_names() const = 0;
  virtual bool HasTensor(std::string_view name) const = 0;
  virtual bool HasLinear(std::string_view module) const = 0;
  // Float tensors (norms, biases, float embeddings). NOT_FOUND (reason TENSOR_NOT_FOUND) names file and tensor.
  virtual absl::StatusOr<TensorView> GetTensor(std::string_view name) const = 0;
  // spec.strategy says how it is stored: "f32", "f16", "bf16", "gguf_q4_0", "int4_w4a16", ... "model.embed_tokens" is
  // answered too (a [V, hidden] table in whatever form it is stored); "lm_head" only when the file has one.
  virtual absl::StatusOr<StoredLinear> GetLinear(std::string_view module) const = 0;
  // Human-readable notes for the report, one a kind: "Q6_K: repacked losslessly to 8-bit codes".
  virtual std::vector<std::string> notes() const { return {}; }
  // sha256 over the files (sorted by name); computed on first call.
  virtual absl::StatusOr<std::string> Fingerprint() const = 0;
  virtual size_t file_bytes() const = 0;
};

struct LinearStrategyDef;

// Modules of a folder that are stored otherwise than the rest, and what write_config says of such layers.
struct MixedModules {
  std::vector<std::string> modules;
  LinearSpec spec;
  const LinearStrategyDef* strategy = nullptr;
  Json config;
};

struct CheckpointFormatDef {
  std::string_view name;  // "safetensors", "gguf", "compressed_tensors"
  std::string_view summary;
  int rank = 0;  // formats with a larger rank are asked first
  bool (*recognize)(const std::string& path) = nullptr;
  absl::StatusOr<std::shared_ptr<Checkpoint>> (*open)(const std::string& path) = nullptr;
  // config.json's "quantization_config" of layers whose tensors are those of `strategy` with `spec`; modules in
  // `ignored` stay dense. UNIMPLEMENTED when this format does not hold such layers. Null: the format is only read.
  absl::StatusOr<Json> (*write_config)(const LinearSpec& spec, const LinearStrategyDef& strategy,
                                       const std::vector<std::string>& ignored) = nullptr;
  // Adds `mixed` to the config of the rest. Null: every layer of a folder must be stored alike.
  absl::StatusOr<Json> (*merge_configs)(Json config, const std::vector<MixedModules>& mixed) = nullptr;
  std::string_view config_file = "";  // where that config is written too: "quantize_config.json"
};

// UNIMPLEMENTED (UNSUPPORTED_OUTPUT_FORMAT) for write_config.
absl::Status CannotStore(std::string_view format, const LinearStrategyDef& strategy);

absl::Span<const CheckpointFormatDef* const> CheckpointFormats();
// Asks every format in rank order. NOT_FOUND when nothing is there, INVALID_ARGUMENT when no format recognises it.
absl::StatusOr<std::shared_ptr<Checkpoint>> OpenCheckpoint(const std::string& path);

}  // namespace sage
