// A model on disk in a few words, for listings: reads configuration and tensor directories, never weights.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/engine.h"
#include "engine/api/model.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/tensor/gguf_file.h"

namespace sage {
namespace {

bool HasTokenizerFiles(const std::string& path) {
  if (IsDirectory(path)) {
    for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer.bin"}) {
      if (FileExists(path + "/" + name)) return true;
    }
    return false;
  }
  const auto gguf = GgufFile::Open(path);
  return gguf.ok() && (*gguf)->metadata().contains("tokenizer.ggml.tokens");
}

// The stored forms of the first layer's linears: "bf16", "int4_w4a16", "gguf_q4_0+gguf_q8_0".
std::string StoredQuantization(const Checkpoint& checkpoint, const DecoderConfig& config) {
  std::vector<std::string> names;
  for (const LinearSlot& slot : ListLinears(config)) {
    if (slot.layer != 0 || !checkpoint.HasLinear(slot.name)) continue;
    const absl::StatusOr<StoredLinear> stored = checkpoint.GetLinear(slot.name);
    if (!stored.ok()) continue;
    if (std::find(names.begin(), names.end(), stored->spec.strategy) == names.end()) {
      names.push_back(stored->spec.strategy);
    }
  }
  std::sort(names.begin(), names.end());
  return absl::StrJoin(names, "+");
}

int64_t CountParameters(const DecoderConfig& config) {
  int64_t total = 0;
  for (const LinearSlot& slot : ListLinears(config)) total += slot.N * slot.K + (slot.bias ? slot.N : 0);
  for (const TensorSlot& slot : ListTensors(config)) {
    int64_t elements = 1;
    for (const int64_t d : slot.shape) elements *= d;
    total += elements;
  }
  return total;
}

}  // namespace

absl::StatusOr<ModelSummary> InspectModel(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Checkpoint> checkpoint, OpenCheckpoint(path));
  ModelSummary out;
  out.path = path;
  out.format = std::string(checkpoint->format());
  out.file_bytes = static_cast<int64_t>(checkpoint->file_bytes());
  out.has_tokenizer = HasTokenizerFiles(path);
  const auto config = ParseModelConfig(checkpoint->config(), checkpoint->generation_config());
  if (!config.ok()) {  // listed all the same; loading it says what is wrong
    SAGE_ASSIGN_OR_RETURN(out.architecture, JsonString(checkpoint->config(), "model_type", ""));
    return out;
  }
  out.architecture = config->architecture;
  out.max_position = config->max_position;
  out.parameters = CountParameters(*config);
  out.quantization = StoredQuantization(*checkpoint, *config);
  return out;
}

}  // namespace sage
