// Between wire messages and the engine's structs, with the range checks of the wire. Messages are only named here.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "engine/base/json.h"
#include "server/engine_table.h"
#include "server/model_paths.h"
#include "server/operations/store.h"

namespace sage::quant::v1 {
class Artifact;
class CalibrateRequest;
class CalibrateResult;
class Conversation;
class ConvertRequest;
class ConvertResult;
class Engine;
class EngineProfile;
class EvaluateRequest;
class GenerationOptions;
class GenerationUpdate;
class Operation;
class ScoreResponse;
class StartEngineRequest;
}  // namespace sage::quant::v1

namespace sage::server {

namespace pb = ::sage::quant::v1;

void FillOperation(const OperationRecord& record, pb::Operation* out);
// `full` adds the kernel bindings.
void FillEngine(const EngineRecord& record, bool full, pb::Engine* out);
void FillProfile(const EngineProfile& profile, pb::EngineProfile* out);
void FillUpdate(const GenerationEvent& event, const Tokenizer* tokenizer, bool logprobs, pb::GenerationUpdate* out);
void FillScore(const ScoreResult& result, pb::ScoreResponse* out);

absl::StatusOr<EngineSpec> ToEngineSpec(const pb::StartEngineRequest& request, const ModelPaths& paths);
// The engine's record as the JSON of the command line and of /v1/management/engines.
Json EngineJson(const EngineRecord& record);

// The sampling, stopping and output fields; the prompt is the caller's.
absl::StatusOr<GenerateSpec> ToGenerateSpec(const pb::GenerationOptions& options);
absl::Status CheckGenerateSpec(const GenerateSpec& spec);
// Tokens of a choice in one update of a stream, at least 1.
absl::StatusOr<int64_t> ToStreamInterval(const pb::GenerationOptions& options);

// The template's context {"messages", "tools", ...} from a conversation.
absl::StatusOr<OrderedJson> ToChatContext(const pb::Conversation& conversation);

// `output` of the requests is already an absolute path (see operations/kinds.h).
absl::StatusOr<CalibrationSpec> ToCalibrationSpec(const pb::CalibrateRequest& request, const ModelPaths& paths);
absl::StatusOr<ConvertSpec> ToConvertSpec(const pb::ConvertRequest& request, const ModelPaths& paths);
absl::StatusOr<ReportSpec> ToReportSpec(const pb::EvaluateRequest& request, const ModelPaths& paths);
void FillCalibrateResult(const CalibrationResult& result, pb::CalibrateResult* out);
Json CalibrateJson(const CalibrationResult& result, const std::string& operation);

}  // namespace sage::server
