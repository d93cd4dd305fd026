// Chooses by capability, size and priority.
#include "engine/backends/cuda/kernel_choice.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace sage::cuda {
namespace {

std::string Dotted(int capability) { return absl::StrCat(capability / 10, ".", capability % 10); }

// Why the record is not for this device at all, or empty.
std::string RefuseDevice(const LinearRecord& record, const DeviceTraits& device) {
  if (device.capability < record.min_capability) {
    return absl::StrCat("needs compute capability ", Dotted(record.min_capability), " or later, got ",
                        Dotted(device.capability));
  }
  if (device.capability > record.max_capability) {
    return absl::StrCat("needs compute capability ", Dotted(record.max_capability), " or earlier, got ",
                        Dotted(device.capability));
  }
  return "";
}

std::string RefuseQuery(const LinearRecord& record, const LinearKernelQuery& query, const DeviceTraits& device) {
  if (record.strategy != query.strategy) {
    return absl::StrCat("serves ", std::string(record.strategy), ", not ", query.strategy);
  }
  if (!query.kernel.empty() && record.name != query.kernel) {
    return absl::StrCat("only ", query.kernel, " was asked for");
  }
  std::string reason = RefuseDevice(record, device);
  return reason.empty() ? record.refuse(query, device) : reason;
}

int RankOf(const LinearRecord& record, Priority priority) {
  return priority == Priority::kLatency      ? record.latency_rank
         : priority == Priority::kThroughput ? record.throughput_rank
                                             : record.memory_rank;
}

}  // namespace

std::vector<const LinearRecord*> LinearRecords() {
  std::vector<const LinearRecord*> out;
  for (const CudaLinearFamily* family : CudaLinearFamilies()) {
    for (const LinearRecord& record : family->records) out.push_back(&record);
  }
  return out;
}

const LinearRecord* ChooseLinear(const LinearKernelQuery& query, const DeviceTraits& device,
                                 const std::vector<const LinearRecord*>& records, std::vector<KernelRefusal>* refused) {
  const LinearRecord* best = nullptr;
  for (const LinearRecord* record : records) {
    std::string reason = RefuseQuery(*record, query, device);
    if (!reason.empty()) {
      refused->push_back({std::string(record->name), std::move(reason)});
      continue;
    }
    const bool wins = best == nullptr || RankOf(*record, query.priority) > RankOf(*best, query.priority);
    const LinearRecord* const loser = wins ? best : record;
    if (wins) best = record;
    if (loser != nullptr) {
      refused->push_back({std::string(loser->name), absl::StrCat(std::string(best->name), " is better for this")});
    }
  }
  return best;
}

absl::Status NoLinearKernel(const LinearKernelQuery& query, const DeviceTraits& device,
                            const std::vector<const LinearRecord*>& records,
                            const std::vector<KernelRefusal>& refused) {
  std::string message = absl::StrCat("cuda ", device.CapabilityName(), ": no kernel serves linear strategy ",
                                     query.strategy, ", N=", query.N, ", K=", query.K, ", group ", query.group_size);
  for (const KernelRefusal& r : refused) {
    // What serves something else is only said in sum.
    if (r.reason.rfind("serves ", 0) != 0) absl::StrAppend(&message, "; ", r.kernel, ": ", r.reason);
  }
  std::set<std::string> served;
  for (const LinearRecord* record : records) {
    if (RefuseDevice(*record, device).empty()) served.insert(std::string(record->strategy));
  }
  absl::StrAppend(&message, "; this device serves ", absl::StrJoin(served, ", "));
  return MakeError(absl::StatusCode::kUnimplemented, "NO_KERNEL", message);
}

}  // namespace sage::cuda
