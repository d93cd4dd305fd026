// From the names clients use to paths on disk: only below the model roots and the data folder, whatever the name says.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sage::server {

class ModelPaths {
 public:
  // Creates DATA_DIR and DATA_DIR/artifacts.
  static absl::StatusOr<ModelPaths> Create(const std::string& data_dir, const std::vector<std::string>& roots);

  // MODEL: a path under a root or the artifacts, an artifact's name, ORG/NAME below a root, or a Hugging Face cache
  // folder (models--ORG--NAME) below a root. NOT_FOUND (MODEL_NOT_FOUND), PERMISSION_DENIED (PATH_OUTSIDE_ROOTS).
  absl::StatusOr<std::string> ResolveModel(const std::string& name, const char* what = "model") const;
  // A file or folder under a root or the data folder (datasets, task folders).
  absl::StatusOr<std::string> ResolveData(const std::string& name) const;
  // An existing artifact's folder by name. NOT_FOUND (ARTIFACT_NOT_FOUND).
  absl::StatusOr<std::string> ResolveArtifact(const std::string& name) const;
  // Where a new artifact goes: a plain name (artifacts/NAME) or a path below the data folder; ".." is refused.
  // ALREADY_EXISTS (ARTIFACT_EXISTS) when something is there; `kArtifactMayExist` lets a finished artifact pass, for
  // work that answers with what it finds when that was made from the same specification.
  enum class Existing { kRefused, kArtifactMayExist };
  absl::StatusOr<std::string> NewArtifact(const std::string& name, Existing existing = Existing::kRefused) const;

  const std::string& data_dir() const { return data_dir_; }
  const std::string& artifacts_dir() const { return artifacts_dir_; }
  const std::vector<std::string>& roots() const { return roots_; }

 private:
  absl::StatusOr<std::string> Resolve(const std::string& name, const std::vector<std::string>& below,
                                      const char* reason, const char* what) const;
  std::string data_dir_, artifacts_dir_;
  std::vector<std::string> roots_;  // real paths
};

// [A-Za-z0-9._-], not beginning with '.', 1 to 128 bytes.
bool IsPlainName(const std::string& name);

}  // namespace sage::server
