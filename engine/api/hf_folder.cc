// Opens shards, checks that index and shards agree, and answers tensors by name.
#include "engine/api/hf_folder.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxIndexBytes = size_t{256} << 20;

absl::Status Bad(const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "CHECKPOINT_INVALID", message);
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path, size_t most) {
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, most));
  SAGE_ASSIGN_OR_RETURN(Json out, ParseJson(text, path));
  if (!out.is_object()) return Bad(absl::StrCat(path, ": must be a JSON object"));
  return out;
}

const char* DenseStrategy(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    default:
      return nullptr;
  }
}

}  // namespace

bool IsLinearModule(std::string_view module) {
  return module == "lm_head" || (module.size() > 5 && module.substr(module.size() - 5) == "_proj");
}

bool HfQuantMethodIs(const std::string& path, std::string_view method) {
  const std::string file = path + "/config.json";
  if (!IsDirectory(path) || !FileExists(file)) return false;
  const auto config = ReadJsonFile(file, kMaxConfigBytes);
  if (!config.ok()) return method.empty();
  const auto quantization = config->find("quantization_config");
  if (quantization == config->end() || !quantization->is_object()) return method.empty();
  const auto name = quantization->find("quant_method");
  return name != quantization->end() && name->is_string() && name->get<std::string>() == method;
}

absl::StatusOr<std::unique_ptr<HfFolder>> HfFolder::Open(const std::string& path, const std::string& other_stem) {
  std::unique_ptr<HfFolder> out(new HfFolder());
  out->path_ = path;
  SAGE_ASSIGN_OR_RETURN(out->config_, ReadJsonFile(path + "/config.json", kMaxConfigBytes));
  out->files_.push_back("config.json");
  const std::string generation = path + "/generation_config.json";
  if (FileExists(generation)) {
    SAGE_ASSIGN_OR_RETURN(out->generation_config_, ReadJsonFile(generation, kMaxConfigBytes));
    out->files_.push_back("generation_config.json");
  }
  const bool usual = other_stem.empty() || FileExists(path + "/model.safetensors") ||
                     FileExists(path + "/model.safetensors.index.json");
  SAGE_RETURN_IF_ERROR(out->OpenShards(usual ? "model" : other_stem));
  std::sort(out->files_.begin(), out->files_.end());
  return out;
}

absl::Status HfFolder::OpenShards(const std::string& stem) {
  const std::string single = stem + ".safetensors", index_name = single + ".index.json";
  SAGE_ASSIGN_OR_RETURN(const std::string index_path, JoinInside(path_, index_name));
  if (!FileExists(index_path)) {
    SAGE_ASSIGN_OR_RETURN(const std::string file, JoinInside(path_, single));
    if (!FileExists(file)) {
      return MakeError(absl::StatusCode::kNotFound, "WEIGHTS_NOT_FOUND",
                       absl::StrCat(path_, ": holds neither ", single, " nor ", index_name));
    }
    return AddShard(single, nullptr);
  }
  SAGE_ASSIGN_OR_RETURN(const Json index, ReadJsonFile(index_path, kMaxIndexBytes));
  files_.push_back(index_name);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) return Bad(absl::StrCat(index_path, ": weight_map must be an object"));
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string())
      return Bad(absl::StrCat(index_path, ": weight_map of '", tensor.substr(0, 120), "' must be a file name"));
    names.insert(shard.get<std::string>());
  }
  if (names.size() > 100000) return Bad(absl::StrCat(index_path, ": names more than 100000 shards"));
  for (const std::string& name : names) SAGE_RETURN_IF_ERROR(AddShard(name, &*map));
  for (const auto& [tensor, shard] : map->items()) {
    if (tensors_.count(tensor) == 0) {
      return Bad(absl::StrCat(path_, "/", shard.get<std::string>(), ": tensor '", tensor.substr(0, 120),
                              "' is in the index but not in the shard"));
    }
  }
  return absl::OkStatus();
}

absl::Status HfFolder::AddShard(const std::string& name, const Json* weight_map) {
  SAGE_ASSIGN_OR_RETURN(const std::string path, JoinInside(path_, name));
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<SafetensorsFile> shard, SafetensorsFile::Open(path));
  for (const auto& [tensor, view] : shard->tensors()) {
    if (weight_map != nullptr) {
      const auto it = weight_map->find(tensor);
      if (it == weight_map->end() || it->get<std::string>() != name) continue;  // not what the index means
    }
    if (!tensors_.emplace(tensor, view).second) {
      return Bad(absl::StrCat(path, ": tensor '", tensor.substr(0, 120), "' is in another shard too"));
    }
  }
  shards_.push_back(std::move(shard));
  files_.push_back(name);
  return absl::OkStatus();
}

const TensorView* HfFolder::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<TensorView> HfFolder::Get(std::string_view name) const {
  const TensorView* view = Find(name);
  if (view != nullptr) return *view;
  return MakeError(absl::StatusCode::kNotFound, "TENSOR_NOT_FOUND",
                   absl::StrCat(path_, ": has no tensor '", std::string(name), "'"));
}

absl::StatusOr<StoredLinear> HfFolder::GetDense(std::string_view module) const {
  const std::string name(module);
  SAGE_ASSIGN_OR_RETURN(const TensorView weight, Get(name + ".weight"));
  const char* strategy = DenseStrategy(weight.dtype);
  if (strategy == nullptr) {
    return MakeError(absl::StatusCode::kInvalidArgument, "DTYPE_NOT_SUPPORTED",
                     absl::StrCat(path_, ": ", name, ".weight must be F32, F16 or BF16, got ",
                                  std::string(DTypeName(weight.dtype))));
  }
  if (weight.shape.size() != 2) {
    return Bad(absl::StrCat(path_, ": ", name, ".weight must have two dimensions, got ", ShapeText(weight.shape)));
  }
  StoredLinear out;
  out.spec.strategy = strategy;
  out.N = weight.dim(0);
  out.K = weight.dim(1);
  out.tensors["weight"] = weight;
  if (const TensorView* bias = Find(name + ".bias")) out.bias = *bias;
  return out;
}

std::vector<std::string> HfFolder::DenseLinearNames() const {
  std::vector<std::string> out;
  for (const auto& [name, view] : tensors_) {
    if (!absl::EndsWith(name, ".weight") || view.shape.size() != 2) continue;
    const std::string module = name.substr(0, name.size() - 7);
    if (IsLinearModule(module)) out.push_back(module);
  }
  return out;
}

absl::StatusOr<std::string> HfFolder::Fingerprint() const {
  std::lock_guard<std::mutex> lock(fingerprint_mutex_);
  if (!fingerprint_.empty()) return fingerprint_;
  Sha256 hash;
  for (const std::string& file : files_) {
    SAGE_ASSIGN_OR_RETURN(const std::string digest, Sha256File(path_ + "/" + file));
    const std::string line = absl::StrCat(file, " ", digest, "\n");
    hash.Update(line.data(), line.size());
  }
  fingerprint_ = hash.HexDigest();
  return fingerprint_;
}

size_t HfFolder::file_bytes() const {
  size_t total = 0;
  for (const auto& shard : shards_) total += shard->file() == nullptr ? 0 : shard->file()->size();
  return total;
}

}  // namespace sage
