// Reads the plug-in tables.
#include "server/capabilities.h"

#include "absl/strings/str_cat.h"
#include "engine/api/absent_backends.h"
#include "engine/api/backend.h"
#include "engine/api/calibrator.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/kv_strategy.h"
#include "engine/api/linear_strategy.h"
#include "engine/api/model.h"
#include "engine/base/status.h"
#include "sage/quant/v1/quantization.pb.h"
#include "server/convert_status.h"

namespace sage::server {

namespace pb = ::sage::quant::v1;

void FillCapabilities(int threads, pb::ListCapabilitiesResponse* out) {
  for (const LinearStrategyDef* def : LinearStrategies()) {
    auto* row = out->add_linear_strategies();
    row->set_name(std::string(def->name));
    row->set_summary(std::string(def->summary));
    row->set_weight_dtype(std::string(def->weight_dtype));
    row->set_weight_bits(def->weight_bits);
    row->set_activation_bits(def->activation_bits);
    row->set_quantizes(def->quantizes);
  }
  for (const KvStrategyDef* def : KvStrategies()) {
    auto* row = out->add_kv_strategies();
    row->set_name(std::string(def->name));
    row->set_summary(std::string(def->summary));
    row->set_bits(def->bits);
  }
  for (const CalibratorDef* def : Calibrators()) {
    auto* row = out->add_calibrators();
    row->set_name(std::string(def->name));
    row->set_summary(std::string(def->summary));
    row->set_needs_activations(def->needs_activations);
  }
  for (const CheckpointFormatDef* def : CheckpointFormats()) {
    auto* row = out->add_checkpoint_formats();
    row->set_name(std::string(def->name));
    row->set_summary(std::string(def->summary));
  }
  for (const ModelDef* def : Models()) {
    auto* row = out->add_models();
    row->set_name(std::string(def->name));
    row->set_summary(std::string(def->summary));
  }
  for (const BackendDef* def : Backends()) {
    auto* row = out->add_backends();
    row->set_name(std::string(def->name));
    row->set_summary(std::string(def->summary));
    absl::StatusOr<std::unique_ptr<Backend>> backend = def->open();
    row->set_available(backend.ok());
    if (!backend.ok()) {
      row->set_reason(std::string(backend.status().message()));
      continue;
    }
    row->set_capability((*backend)->capability());
    for (const std::string& kernel : (*backend)->ListKernels()) row->add_kernels(kernel);
  }
  for (const AbsentBackend& absent : AbsentBackends()) {
    auto* row = out->add_backends();
    row->set_name(std::string(absent.name));
    row->set_summary(std::string(absent.summary));
    row->set_reason(std::string(absent.reason));
  }
  out->set_version(SAGE_VERSION);
  out->set_threads(threads);
}

Json BackendsJson() {
  Json list = Json::array();
  for (const BackendDef* def : Backends()) {
    absl::StatusOr<std::unique_ptr<Backend>> backend = def->open();
    Json row = {{"name", std::string(def->name)}, {"summary", std::string(def->summary)}, {"available", backend.ok()}};
    if (backend.ok()) {
      row["capability"] = (*backend)->capability();
    } else {
      row["reason"] = std::string(backend.status().message());
    }
    list.push_back(std::move(row));
  }
  for (const AbsentBackend& absent : AbsentBackends()) {
    list.push_back({{"name", std::string(absent.name)},
                    {"summary", std::string(absent.summary)},
                    {"available", false},
                    {"reason", std::string(absent.reason)}});
  }
  return {{"backends", list}};
}

namespace {

// Whether the strategy stores groups of this size; what else it asks for is not the question here.
absl::Status CheckGroup(const LinearStrategyDef& strategy, const LinearKernelQuery& query, int group_size) {
  LinearSpec spec;
  spec.strategy = query.strategy;
  spec.group_size = group_size;
  spec.symmetric = query.symmetric;
  const int64_t any = int64_t{1} << 12;
  const int64_t K = query.K > 0 ? query.K : group_size > 0 ? group_size * any : any;
  const absl::Status status = strategy.check(spec, query.N > 0 ? query.N : any, K);
  return GetErrorReason(status).reason.find("GROUP") == std::string::npos ? absl::OkStatus() : status;
}

// What calibrate would refuse has no kernel. Without --inputs any number of inputs is meant that the group divides;
// without --group-size the size calibrate would take.
absl::Status ChooseGroup(const pb::SelectKernelRequest& request, LinearKernelQuery& query) {
  SAGE_ASSIGN_OR_RETURN(const LinearStrategyDef* strategy, FindLinearStrategy(query.strategy));
  if (!strategy->quantizes || strategy->check == nullptr) return absl::OkStatus();
  const absl::Status asked = CheckGroup(*strategy, query, query.group_size);
  if (request.group_size() != 0 || asked.ok()) return asked;
  for (const int size : {64, 32, -1}) {
    if (size < 0 && strategy->integer_grid) break;  // one scale a row only where somebody says so
    if (!CheckGroup(*strategy, query, size).ok()) continue;
    query.group_size = size;
    return absl::OkStatus();
  }
  return asked;
}

}  // namespace

absl::Status SelectKernel(const pb::SelectKernelRequest& request, pb::SelectKernelResponse* out) {
  LinearKernelQuery query;
  if (request.weight_dtype().empty()) return BadField("weight_dtype", "EMPTY", "must be named");
  absl::StatusOr<std::string> strategy =
      request.activation_dtype().empty() ? ResolveLinearStrategy(request.weight_dtype())
                                         : ResolveLinearStrategy(request.weight_dtype(), request.activation_dtype());
  if (!strategy.ok()) return strategy.status();
  query.strategy = *strategy;
  query.N = request.outputs();
  query.K = request.inputs();
  query.group_size = request.group_size() == 0 ? 128 : request.group_size();
  query.symmetric = !request.asymmetric();
  query.kernel = request.kernel();
  query.priority = request.priority() == pb::PRIORITY_THROUGHPUT ? Priority::kThroughput
                   : request.priority() == pb::PRIORITY_MEMORY   ? Priority::kMemory
                                                                 : Priority::kLatency;
  if (query.N < 0 || query.K < 0 || query.group_size < -1) {
    return BadField("group_size", "OUT_OF_RANGE",
                    "outputs, inputs and group_size must not be negative (-1 = per channel)");
  }
  SAGE_RETURN_IF_ERROR(ChooseGroup(request, query));
  std::string refusals;
  for (const BackendDef* def : Backends()) {
    const bool any = request.backend().empty() || request.backend() == "auto";
    if (!any && request.backend() != def->name) continue;
    absl::StatusOr<std::unique_ptr<Backend>> backend = def->open();
    if (!backend.ok()) {
      if (!any) return backend.status();
      continue;
    }
    const KernelChoice choice = (*backend)->SelectLinear(query);
    for (const KernelRefusal& refusal : choice.refused) {
      auto* row = out->add_refused();
      row->set_kernel(refusal.kernel);
      row->set_reason(refusal.reason);
      absl::StrAppend(&refusals, refusals.empty() ? "" : "; ", refusal.kernel, ": ", refusal.reason);
    }
    if (choice.kernel.empty()) continue;
    out->set_kernel(choice.kernel);
    out->set_strategy(query.strategy);
    out->set_backend(std::string((*backend)->name()));
    out->set_capability((*backend)->capability());
    return absl::OkStatus();
  }
  if (!request.backend().empty() && request.backend() != "auto") {
    absl::StatusOr<std::unique_ptr<Backend>> backend = OpenBackend(request.backend());
    if (!backend.ok()) return backend.status();
  }
  return MakeError(absl::StatusCode::kUnimplemented, "NO_KERNEL",
                   absl::StrCat("no kernel runs ", query.strategy, ": ", refusals.empty() ? "none is known" : refusals),
                   {{"strategy", query.strategy}});
}

}  // namespace sage::server
