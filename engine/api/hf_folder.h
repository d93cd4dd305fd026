// A Hugging Face model folder opened for reading: config files and the tensors of one or many safetensors shards.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "engine/api/checkpoint_format.h"
#include "engine/tensor/safetensors_file.h"

namespace sage {

class HfFolder {
 public:
  // Reads config.json, generation_config.json when present, and model.safetensors or the shards that
  // model.safetensors.index.json names (names that leave the folder are refused). Where those are absent, `other_stem`
  // (not empty) takes the place of "model".
  static absl::StatusOr<std::unique_ptr<HfFolder>> Open(const std::string& path, const std::string& other_stem = "");

  const std::string& path() const { return path_; }
  const Json& config() const { return config_; }
  const Json& generation_config() const { return generation_config_; }
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }
  const TensorView* Find(std::string_view name) const;
  absl::StatusOr<TensorView> Get(std::string_view name) const;
  // A [N, K] float weight with its bias, strategy "f32", "f16" or "bf16".
  absl::StatusOr<StoredLinear> GetDense(std::string_view module) const;
  // Modules with a two-dimensional "weight" that are projections or the head, and tensors that belong to no such
  // module.
  std::vector<std::string> DenseLinearNames() const;
  absl::StatusOr<std::string> Fingerprint() const;
  size_t file_bytes() const;

 private:
  HfFolder() = default;
  absl::Status OpenShards(const std::string& stem);
  absl::Status AddShard(const std::string& name, const Json* weight_map);

  std::string path_;
  Json config_, generation_config_ = Json::object();
  std::vector<std::shared_ptr<SafetensorsFile>> shards_;
  std::vector<std::string> files_;  // what the fingerprint covers, sorted
  std::map<std::string, TensorView, std::less<>> tensors_;
  mutable std::mutex fingerprint_mutex_;
  mutable std::string fingerprint_;
};

// True for a folder with config.json whose quantization_config names `method` ("" = has none).
bool HfQuantMethodIs(const std::string& path, std::string_view method);
// A projection ("..._proj") or "lm_head".
bool IsLinearModule(std::string_view module);

}  // namespace sage
