// Fuzzes checkpoint folders: config.json and the names, types and shapes of tensors, as each format's reader takes
// them.
//
// The input is one JSON document {"config": {...}, "tensors": {name: [dtype, [shape]]}}, a zero byte, and bytes that
// fill the tensors over and over. It becomes a folder of config.json and model.safetensors; whatever opens must hand
// out linear layers that dequantize without reading past what they hold.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "absl/types/span.h"
#include "engine/api/calibrator.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/kv_strategy.h"
#include "engine/api/linear_strategy.h"
#include "engine/base/json.h"

namespace sage {
// Reading a folder needs none of these kinds of plug-ins; their tables stay empty here.
absl::Span<const KvStrategyDef* const> KvStrategies() { return {}; }
absl::Span<const CalibratorDef* const> Calibrators() { return {}; }
absl::Span<const BackendDef* const> Backends() { return {}; }
}  // namespace sage

namespace {

constexpr size_t kMaxTensors = 64;
constexpr uint64_t kMaxBytes = 1 << 18;
constexpr int64_t kMaxRows = 4, kMaxInputs = 1 << 14;

const std::string& Folder() {
  static const std::string* const folder = [] {
    auto* path = new std::string("/tmp/sage-checkpoint-fuzz-XXXXXX");
    if (mkdtemp(path->data()) == nullptr) std::abort();
    return path;
  }();
  return *folder;
}

// Bytes a tensor of this type and shape takes; kMaxBytes + 1 when that is too much for a fuzzer or makes no sense.
uint64_t BytesOf(const sage::Json& tensor) {
  if (!tensor.is_array() || tensor.size() != 2 || !tensor[0].is_string() || !tensor[1].is_array()) return kMaxBytes + 1;
  const std::string& dtype = tensor[0].get_ref<const std::string&>();
  uint64_t bytes = dtype.find("64") != dtype.npos   ? 8
                   : dtype.find("32") != dtype.npos ? 4
                   : dtype.find("16") != dtype.npos ? 2
                                                    : 1;
  for (const sage::Json& dim : tensor[1]) {
    if (!dim.is_number_unsigned()) return kMaxBytes + 1;
    const uint64_t size = dim.get<uint64_t>();
    if (size > kMaxBytes || bytes * size > kMaxBytes) return kMaxBytes + 1;
    bytes *= size;
  }
  return bytes;
}

bool WriteFolder(const sage::Json& document, std::string_view fill) {
  const auto config = document.find("config"), tensors = document.find("tensors");
  if (config == document.end() || tensors == document.end() || !tensors->is_object()) return false;
  if (tensors->size() > kMaxTensors) return false;
  sage::Json header = sage::Json::object();
  uint64_t at = 0;
  for (const auto& [name, tensor] : tensors->items()) {
    const uint64_t bytes = BytesOf(tensor);
    if (at + bytes > kMaxBytes) return false;
    header[name] = {{"dtype", tensor[0]}, {"shape", tensor[1]}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  std::string data(at, '\0');
  for (size_t i = 0; i < data.size() && !fill.empty(); ++i) data[i] = fill[i % fill.size()];
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::ofstream(Folder() + "/config.json") << config->dump();
  std::ofstream out(Folder() + "/model.safetensors", std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << text << data;
  return out.good();
}

void ReadLinear(const sage::Checkpoint& checkpoint, const std::string& module) {
  const auto stored = checkpoint.GetLinear(module);
  if (!stored.ok() || stored->N < 1 || stored->K > kMaxInputs) return;
  const auto strategy = sage::FindLinearStrategy(stored->spec.strategy);
  if (!strategy.ok()) std::abort();  // a reader named what does not exist
  const int64_t rows = stored->N < kMaxRows ? stored->N : kMaxRows;
  std::vector<float> out(static_cast<size_t>(rows * stored->K));
  (void)(*strategy)->dequantize_rows(*stored, 0, rows, out.data()).ok();
  (void)(*strategy)->dequantize_rows(*stored, stored->N - rows, stored->N, out.data()).ok();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const auto document = sage::ParseJson(input.substr(0, end), "fuzz");
  if (!document.ok() || !document->is_object()) return 0;
  if (!WriteFolder(*document, end == input.npos ? "" : input.substr(end + 1))) return 0;
  const auto checkpoint = sage::OpenCheckpoint(Folder());
  if (!checkpoint.ok()) return 0;
  for (const std::string& module : (*checkpoint)->linear_names()) ReadLinear(**checkpoint, module);
  for (const std::string& name : (*checkpoint)->tensor_names()) (void)(*checkpoint)->GetTensor(name).ok();
  (void)(*checkpoint)->notes().size();
  return 0;
}
