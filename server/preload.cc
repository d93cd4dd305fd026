// One after another: two loads at once would each be admitted on memory that the other takes.
#include "server/preload.h"

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "google/protobuf/util/json_util.h"
#include "sage/quant/v1/engine.pb.h"
#include "server/convert.h"
#include "server/daemon.h"
#include "server/start_engine.h"
#include "server/telemetry/log.h"

namespace sage::server {
namespace {

absl::Status Bad(const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CONFIG", "engines-file: " + message);
}

}  // namespace

absl::StatusOr<std::vector<pb::StartEngineRequest>> ParseEngines(const std::string& text) {
  SAGE_ASSIGN_OR_RETURN(const Json list, ParseJson(text, "engines-file"));
  if (!list.is_array()) return Bad("must be a JSON array of engines");
  std::vector<pb::StartEngineRequest> out;
  for (size_t i = 0; i < list.size(); ++i) {
    pb::StartEngineRequest request;
    const auto status = google::protobuf::util::JsonStringToMessage(DumpJson(list[i]), &request);
    if (!status.ok()) return Bad(absl::StrCat("engine ", i, ": ", std::string(status.message())));
    if (request.model().empty()) return Bad(absl::StrCat("engine ", i, ": must name a model"));
    out.push_back(std::move(request));
  }
  return out;
}

absl::Status StartEngines(Daemon& daemon, const std::string& path, const CancelToken& cancel) {
  if (path.empty()) return absl::OkStatus();
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  SAGE_ASSIGN_OR_RETURN(const std::vector<pb::StartEngineRequest> requests, ParseEngines(text));
  for (const pb::StartEngineRequest& request : requests) {
    absl::StatusOr<EngineRecord> record = StartEngineWithOperation(daemon, request, cancel, nullptr);
    if (!record.ok()) return Annotate(record.status(), absl::StrCat("engines-file: ", request.model()));
    Log(LogLevel::kInfo, "engine_preloaded",
        {{"engine", record->info.engine_id}, {"model", record->info.model}, {"kv_bytes", record->info.kv_bytes}});
  }
  return absl::OkStatus();
}

}  // namespace sage::server
