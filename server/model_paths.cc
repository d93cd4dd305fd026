// Path resolution: candidates are made by joining, and only a real path (links followed) inside an allowed folder
// counts.
#include "server/model_paths.h"

#include <sys/stat.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/read_roots.h"
#include "engine/base/status.h"

namespace sage::server {
namespace {

std::string RealPath(const std::string& path) {
  char buffer[PATH_MAX];
  return realpath(path.c_str(), buffer) == nullptr ? "" : std::string(buffer);
}

absl::Status CheckName(const std::string& name, const char* what) {
  if (name.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "NAME_EMPTY", absl::StrCat(what, ": must be named"),
                     {{"field", what}});
  }
  if (name.size() > 4096 || name.find('\0') != std::string::npos) {
    return MakeError(absl::StatusCode::kInvalidArgument, "NAME_INVALID",
                     absl::StrCat(what, ": a name has at most 4096 bytes and no NUL"), {{"field", what}});
  }
  return absl::OkStatus();
}

bool HasDotDot(const std::string& name) {
  for (const auto& part : std::filesystem::path(name)) {
    if (part == "..") return true;
  }
  return false;
}

bool IsInsideAny(const std::string& path, const std::vector<std::string>& folders) {
  return std::any_of(folders.begin(), folders.end(), [&](const std::string& f) { return IsBelow(path, f); });
}

// No link below `folder` may lead out of the allowed folders: whoever may write into a model folder must not choose
// what else the daemon reads. A Hugging Face cache passes, its links stay below the root.
absl::Status CheckLinks(const std::string& folder, int depth, const std::vector<std::string>& below, const char* what) {
  std::error_code error;
  if (!IsDirectory(folder)) return absl::OkStatus();
  for (auto entry = std::filesystem::recursive_directory_iterator(folder, error);
       !error && entry != std::filesystem::recursive_directory_iterator(); entry.increment(error)) {
    if (entry.depth() >= depth) entry.disable_recursion_pending();
    if (!entry->is_symlink(error)) continue;
    const std::string target = RealPath(entry->path().string());
    if (target.empty() || IsInsideAny(target, below)) continue;
    return MakeError(absl::StatusCode::kPermissionDenied, "PATH_OUTSIDE_ROOTS",
                     absl::StrCat(what, ": links must stay below the model roots, got a link that leaves them: ",
                                  entry->path().lexically_relative(folder).string(),
                                  "; name the folder it leads to as another --model-root"),
                     {{"file", entry->path().lexically_relative(folder).string()}});
  }
  return absl::OkStatus();
}

// models--ORG--NAME/snapshots/<newest> of a Hugging Face cache; "" when there is none.
std::string CacheSnapshot(const std::string& root, const std::string& name) {
  if (std::count(name.begin(), name.end(), '/') != 1 || HasDotDot(name)) return "";
  std::string folder = name;
  folder.replace(folder.find('/'), 1, "--");
  const std::string snapshots = absl::StrCat(root, "/models--", folder, "/snapshots");
  std::error_code error;
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(snapshots, error)) {
    if (entry.is_directory(error)) found.push_back(entry.path().string());
  }
  if (found.empty()) return "";
  return *std::max_element(found.begin(), found.end(), [](const std::string& a, const std::string& b) {
    std::error_code ignored;
    return std::filesystem::last_write_time(a, ignored) < std::filesystem::last_write_time(b, ignored);
  });
}

}  // namespace

bool IsPlainName(const std::string& name) {
  if (name.empty() || name.size() > 128 || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return isalnum(c) || c == '.' || c == '_' || c == '-'; });
}

absl::StatusOr<ModelPaths> ModelPaths::Create(const std::string& data_dir, const std::vector<std::string>& roots) {
  ModelPaths out;
  for (const char* folder : {"", "/artifacts", "/work", "/datasets"}) {
    SAGE_RETURN_IF_ERROR(MakeDirectories(data_dir + folder));
  }
  out.data_dir_ = RealPath(data_dir);
  out.artifacts_dir_ = out.data_dir_ + "/artifacts";
  for (const std::string& root : roots) {
    const std::string real = RealPath(root);
    if (real.empty() || !IsDirectory(real)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CONFIG",
                       absl::StrCat("model-root: must be a folder, got ", root));
    }
    out.roots_.push_back(real);
  }
  return out;
}

absl::StatusOr<std::string> ModelPaths::Resolve(const std::string& name, const std::vector<std::string>& below,
                                                const char* reason, const char* what) const {
  SAGE_RETURN_IF_ERROR(CheckName(name, what));
  std::vector<std::string> candidates;
  if (name[0] == '/') {
    candidates.push_back(name);
  } else {
    for (const std::string& folder : below) {
      candidates.push_back(absl::StrCat(folder, "/", name));
      candidates.push_back(CacheSnapshot(folder, name));
    }
  }
  bool outside = HasDotDot(name);
  for (const std::string& candidate : candidates) {
    const std::string real = candidate.empty() ? "" : RealPath(candidate);
    if (real.empty()) continue;
    if (IsInsideAny(real, below)) {
      // A root that is a model itself may hold much else below.
      const bool is_root = std::find(below.begin(), below.end(), real) != below.end();
      SAGE_RETURN_IF_ERROR(CheckLinks(real, is_root ? 0 : 4, below, what));
      return real;
    }
    outside = true;
  }
  if (outside || (name[0] == '/' && !IsInsideAny(name, below))) {
    return MakeError(
        absl::StatusCode::kPermissionDenied, "PATH_OUTSIDE_ROOTS",
        absl::StrCat(what, ": must lie under a model root or the daemon's data folder, got \"", name, "\""),
        {{"name", name}});
  }
  return MakeError(absl::StatusCode::kNotFound, reason,
                   absl::StrCat(what, ": \"", name, "\" is neither under a model root nor an artifact of the daemon"),
                   {{"name", name}});
}

absl::StatusOr<std::string> ModelPaths::ResolveModel(const std::string& name, const char* what) const {
  std::vector<std::string> below = {artifacts_dir_};
  below.insert(below.end(), roots_.begin(), roots_.end());
  below.push_back(data_dir_);
  return Resolve(name, below, "MODEL_NOT_FOUND", what);
}

absl::StatusOr<std::string> ModelPaths::ResolveData(const std::string& name) const {
  std::vector<std::string> below = roots_;
  below.push_back(data_dir_);
  return Resolve(name, below, "DATASET_NOT_FOUND", "dataset");
}

absl::StatusOr<std::string> ModelPaths::ResolveArtifact(const std::string& name) const {
  const std::string path = absl::StrCat(artifacts_dir_, "/", name);
  if (!IsPlainName(name) || !IsDirectory(path) || RealPath(path) != path) {
    return MakeError(absl::StatusCode::kNotFound, "ARTIFACT_NOT_FOUND",
                     absl::StrCat("artifact: \"", name, "\" is not in the daemon's artifacts"), {{"name", name}});
  }
  return path;
}

absl::StatusOr<std::string> ModelPaths::NewArtifact(const std::string& asked_name, Existing existing) const {
  SAGE_RETURN_IF_ERROR(CheckName(asked_name, "output"));
  std::string path, name = asked_name;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  if (IsPlainName(name)) {
    path = absl::StrCat(artifacts_dir_, "/", name);
  } else {
    const std::filesystem::path asked = name[0] == '/' ? name : absl::StrCat(artifacts_dir_, "/", name);
    const std::string parent = RealPath(asked.parent_path().string());
    const std::string leaf = asked.filename().string();
    if (HasDotDot(name) || parent.empty() || !IsBelow(parent, data_dir_) || !IsPlainName(leaf)) {
      return MakeError(absl::StatusCode::kPermissionDenied, "PATH_OUTSIDE_ROOTS",
                       absl::StrCat("output: must be a plain name ([A-Za-z0-9._-]) or a path below the daemon's data "
                                    "folder, got \"",
                                    name, "\""),
                       {{"name", name}});
    }
    path = absl::StrCat(parent, "/", leaf);
  }
  struct stat info;
  if (lstat(path.c_str(), &info) == 0) {
    const bool artifact = S_ISDIR(info.st_mode) && FileExists(path + "/sage_quant.json");
    if (artifact && existing == Existing::kArtifactMayExist) return path;
    return MakeError(absl::StatusCode::kAlreadyExists, "ARTIFACT_EXISTS",
                     absl::StrCat("output: \"", name, "\" exists; delete it or choose another name"), {{"name", name}});
  }
  return path;
}

}  // namespace sage::server
