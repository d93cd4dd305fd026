// The interface's names beside "cpu", which every build has.
#include "engine/api/absent_backends.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/api/backend.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr std::string_view kNoPlugin =
    "there is no plug-in for it yet; use backend cpu, or cuda on an NVIDIA GPU, or leave backend out";
constexpr AbsentBackend kNamed[] = {
    {"cuda", "NVIDIA GPUs",
     "this build was made without CUDA; build with `cmake --preset cuda` or run the cuda image, or use backend cpu"},
    {"tensorrt", "NVIDIA GPUs by TensorRT", kNoPlugin},
    {"rocm", "AMD GPUs", kNoPlugin},
    {"ascend", "Huawei Ascend NPUs", kNoPlugin},
    {"mlu", "Cambricon MLUs", kNoPlugin},
    {"kunlun", "Baidu Kunlun XPUs", kNoPlugin},
    {"dcu", "Hygon DCUs", kNoPlugin},
};

}  // namespace

std::vector<AbsentBackend> AbsentBackends() {
  std::vector<AbsentBackend> out;
  for (const AbsentBackend& named : kNamed) {
    const bool here = std::any_of(Backends().begin(), Backends().end(),
                                  [&](const BackendDef* def) { return def->name == named.name; });
    if (!here) out.push_back(named);
  }
  return out;
}

absl::Status CheckBackendPresent(std::string_view name) {
  for (const AbsentBackend& absent : AbsentBackends()) {
    if (absent.name != name) continue;
    return MakeError(absl::StatusCode::kUnimplemented, "BACKEND_ABSENT",
                     absl::StrCat("backend ", std::string(name), ": ", std::string(absent.reason)),
                     {{"backend", std::string(name)}, {"field", "backend"}});
  }
  return absl::OkStatus();
}

}  // namespace sage
