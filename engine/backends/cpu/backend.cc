// The CPU backend: the embedded default. Kernels are chosen once at load by cpuid, best first; every refusal has a
// reason.
#include "engine/api/backend.h"

#include "absl/strings/str_cat.h"
#include "engine/backends/cpu/cpu_ops.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"
#include "engine/base/status.h"

namespace sage::backends {
namespace {

class CpuBackend final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }
  std::string capability() const override {
    const std::string tier = cpu::HostTier().name;
    return tier == "avx512" ? (HostCpu().avx512_bf16 ? "avx512_vnni_bf16" : "avx512_vnni") : tier;
  }
  const Kernels& kernels() const override { return cpu::CpuKernels(); }

  KernelChoice SelectLinear(const LinearKernelQuery& query) const override {
    KernelChoice choice;
    const LinearKernelDef* def = Choose(query, &choice.refused);
    if (def != nullptr) choice.kernel = std::string(def->name);
    return choice;
  }

  absl::StatusOr<std::unique_ptr<BoundLinear>> BindLinear(const LinearKernelQuery& query, LinearWeight weight,
                                                          ThreadPool& threads) const override {
    std::vector<KernelRefusal> refused;
    const LinearKernelDef* def = Choose(query, &refused);
    if (def == nullptr) return NoKernel(absl::StrCat("linear strategy ", query.strategy), refused);
    return def->bind(std::move(weight), threads);
  }

  absl::StatusOr<std::unique_ptr<KvKernel>> BindKv(std::string_view kv_strategy,
                                                   const KvLayout& layout) const override {
    std::vector<KernelRefusal> refused;
    const AttentionKernelDef* best = nullptr;
    for (const AttentionKernelDef* def : CpuAttentionKernels()) {
      std::string reason = def->kv_strategy == kv_strategy ? def->refuse(layout, HostCpu())
                                                           : absl::StrCat("serves ", std::string(def->kv_strategy),
                                                                          ", not ", std::string(kv_strategy));
      if (!reason.empty()) {
        refused.push_back({std::string(def->name), std::move(reason)});
      } else if (best == nullptr || def->rank > best->rank) {
        best = def;
      }
    }
    if (best == nullptr) return NoKernel(absl::StrCat("kv strategy ", std::string(kv_strategy)), refused);
    return best->bind(layout);
  }

  std::vector<std::string> ListKernels() const override {
    std::vector<std::string> out;
    for (const LinearKernelDef* def : CpuLinearKernels()) out.emplace_back(def->name);
    for (const AttentionKernelDef* def : CpuAttentionKernels()) out.emplace_back(def->name);
    return out;
  }

 private:
  static const LinearKernelDef* Choose(const LinearKernelQuery& query, std::vector<KernelRefusal>* refused) {
    const LinearKernelDef* best = nullptr;
    for (const LinearKernelDef* def : CpuLinearKernels()) {
      std::string reason;
      if (def->strategy != query.strategy) {
        reason = absl::StrCat("serves ", std::string(def->strategy), ", not ", query.strategy);
      } else if (!query.kernel.empty() && def->name != query.kernel) {
        reason = absl::StrCat("only ", query.kernel, " was asked for");
      } else {
        reason = def->refuse(query, HostCpu());
      }
      if (!reason.empty()) {
        refused->push_back({std::string(def->name), std::move(reason)});
        continue;
      }
      if (best != nullptr) {
        const LinearKernelDef* loser = def->rank > best->rank ? best : def;
        const LinearKernelDef* winner = def->rank > best->rank ? def : best;
        refused->push_back({std::string(loser->name), absl::StrCat(std::string(winner->name), " is faster here")});
        best = winner;
      } else {
        best = def;
      }
    }
    return best;
  }

  static absl::Status NoKernel(const std::string& what, const std::vector<KernelRefusal>& refused) {
    std::string message = absl::StrCat("cpu: no kernel serves ", what);
    for (const KernelRefusal& r : refused) absl::StrAppend(&message, "; ", r.kernel, ": ", r.reason);
    return MakeError(absl::StatusCode::kUnimplemented, "NO_KERNEL", message);
  }
};

absl::StatusOr<std::unique_ptr<Backend>> Open() { return std::make_unique<CpuBackend>(); }

}  // namespace

extern const BackendDef kCpu;
const BackendDef kCpu = {.name = "cpu", .summary = "x86-64 with AVX-512 VNNI or AVX2, and any other CPU", .open = Open};

}  // namespace sage::backends
