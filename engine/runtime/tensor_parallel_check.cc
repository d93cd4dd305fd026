// The checks of CheckTensorParallel, layer by layer.
#include "engine/runtime/tensor_parallel_check.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int kMostShards = 1024;

bool IsRowParallel(const LinearSlot& slot) { return slot.kind == "o_proj" || slot.kind == "down_proj"; }

absl::Status Refuse(std::string_view reason, const LinearSlot& slot, const std::string& rule, int shards,
                    const std::string& allowed) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason,
                   absl::StrCat(slot.name, ": tensor_parallel=", shards, ": ", rule),
                   {{"layer", slot.name}, {"tensor_parallel", absl::StrCat(shards)}, {"allowed", allowed}});
}

// Group sizes that divide the inputs of every layer's shard.
std::string SizesThatWork(const std::vector<LinearSlot>& slots, int shards) {
  int64_t common = 0;
  for (const LinearSlot& slot : slots) common = std::gcd(common, IsRowParallel(slot) ? slot.K / shards : slot.K);
  return absl::StrJoin(GroupSizesFor(common), ", ");
}

// Shard counts up to 64 that cut the model at all, whatever the groups.
std::string ShardsThatWork(const DecoderConfig& c) {
  std::vector<int> out;
  for (int shards = 1; shards <= 64; ++shards) {
    if (c.H % shards == 0 && c.ffn % shards == 0 && (c.KH % shards == 0 || shards % c.KH == 0)) out.push_back(shards);
  }
  return absl::StrJoin(out, ", ");
}

}  // namespace

absl::Status CheckTensorParallel(const CalibrationPlan& plan, const std::vector<LinearSlot>& slots, int shards) {
  if (shards < 1 || shards > kMostShards) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TENSOR_PARALLEL",
                     absl::StrCat("tensor_parallel: must be 1..", kMostShards, ", got ", shards));
  }
  if (shards == 1) return absl::OkStatus();
  const DecoderConfig& c = plan.source->config();
  for (const LinearSlot& slot : slots) {
    const LinearChoice choice = plan.ChoiceOf(slot.name);
    const bool attention = slot.kind != "gate_proj" && slot.kind != "up_proj" && slot.kind != "down_proj";
    const bool cut = attention ? c.H % shards == 0 && (c.KH % shards == 0 || shards % c.KH == 0) : c.ffn % shards == 0;
    if (!cut) {
      const std::string allowed = ShardsThatWork(c);
      return Refuse("TENSOR_PARALLEL_SHAPE", slot,
                    absl::StrCat(attention ? absl::StrCat("must divide ", c.H,
                                                          " heads, and divide or be a multiple of ", c.KH, " kv heads")
                                           : absl::StrCat("must divide the ", c.ffn, " outputs"),
                                 "; counts that do: ", allowed),
                    shards, allowed);
    }
    if (!IsRowParallel(slot)) continue;
    const int64_t part = slot.K / shards;
    const int group = choice.linear.group_size;
    if (group > 0 && part % group != 0) {
      const std::string allowed = SizesThatWork(slots, shards);
      return Refuse("TENSOR_PARALLEL_GROUPS", slot,
                    absl::StrCat("group_size must divide K / shards = ", part, " (K=", slot.K, "), got ", group,
                                 "; sizes that do for every layer: ",
                                 allowed.empty() ? "none, use -1 (one scale a row)" : allowed),
                    shards, allowed.empty() ? "-1" : allowed);
    }
    if (choice.linear.act_order && group > 0) {
      return Refuse("TENSOR_PARALLEL_ACT_ORDER", slot,
                    "act-order with g_idx makes groups of inputs from all shards; use --format compressed_tensors with "
                    "scales of the original groups, or leave --act-order out (gptq then orders inside the groups)",
                    shards, "");
    }
  }
  return absl::OkStatus();
}

}  // namespace sage
