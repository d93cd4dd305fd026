// Two looks become rates; rates become a table.
#include "client/cli/top_frame.h"

#include <algorithm>
#include <cstdio>

#include "client/cli/operations.h"
#include "client/cli/progress.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

constexpr int kBarColumns = 10;

std::string Bar(double share) {
  const int filled = static_cast<int>(std::clamp(share, 0.0, 1.0) * kBarColumns + 0.5);
  std::string out;
  for (int i = 0; i < kBarColumns; ++i) out += i < filled ? "█" : "░";
  return out;
}

std::string StateName(const v1::Engine& engine) {
  const std::string name = v1::EngineState_Name(engine.state());
  return name.substr(name.rfind('_') + 1);
}

double Rate(int64_t before, int64_t now, double seconds) {
  return seconds > 0 && now >= before ? static_cast<double>(now - before) / seconds : 0.0;
}

std::string EngineLine(const Json& row) {
  char text[256];
  const double share = row["kv_share"];
  std::snprintf(text, sizeof text, "%-16s %-8s %-12s %4lld %5lld %9.1f %9.1f  %s %3.0f%%",
                CutToColumns(row["engine_id"].get<std::string>(), 16).c_str(), row["state"].get<std::string>().c_str(),
                CutToColumns(row["quantization"].get<std::string>(), 12).c_str(),
                static_cast<long long>(row["running"].get<int64_t>()),
                static_cast<long long>(row["waiting"].get<int64_t>()), row["tokens_per_second"].get<double>(),
                row["prompt_tokens_per_second"].get<double>(), Bar(share).c_str(), share * 100);
  return text;
}

}  // namespace

Json TopJson(const TopLook& before, const TopLook& now) {
  Json out = {{"engines", Json::array()}, {"operations", Json::array()}};
  for (const v1::Engine& engine : now.engines) {
    const auto same = [&](const v1::Engine& e) { return e.engine_id() == engine.engine_id(); };
    const auto old = std::find_if(before.engines.begin(), before.engines.end(), same);
    const v1::EngineLoad& load = engine.load();
    const double seconds = old == before.engines.end() ? 0 : now.seconds - before.seconds;
    const v1::EngineLoad& past = old == before.engines.end() ? load : old->load();
    const double pages = static_cast<double>(load.kv_pages_total());
    out["engines"].push_back(
        Json{{"engine_id", engine.engine_id()},
             {"state", StateName(engine)},
             {"quantization", engine.quantization()},
             {"kv_quant", engine.kv_quant()},
             {"running", load.running()},
             {"waiting", load.waiting()},
             {"waiting_tokens", load.waiting_tokens()},
             {"kv_share", pages > 0 ? static_cast<double>(load.kv_pages_used()) / pages : 0.0},
             {"tokens_per_second", Rate(past.generated_tokens_total(), load.generated_tokens_total(), seconds)},
             {"prompt_tokens_per_second", Rate(past.prompt_tokens_total(), load.prompt_tokens_total(), seconds)},
             {"weight_bytes", engine.weight_bytes()},
             {"kv_bytes", engine.kv_bytes()}});
  }
  for (const v1::Operation& operation : now.operations) {
    Json row = OperationJson(operation);
    row.erase("result");
    row["line"] = OperationLine(operation, 0);
    out["operations"].push_back(std::move(row));
  }
  return out;
}

std::string TopFrame(const Json& top, const std::string& title, int columns, int rows) {
  std::vector<std::string> lines = {title, ""};
  double tokens = 0;
  int64_t running = 0, waiting = 0, bytes = 0;
  for (const Json& row : top["engines"]) {
    tokens += row["tokens_per_second"].get<double>();
    running += row["running"].get<int64_t>();
    waiting += row["waiting"].get<int64_t>();
    bytes += row["weight_bytes"].get<int64_t>() + row["kv_bytes"].get<int64_t>();
  }
  char text[160];
  std::snprintf(text, sizeof text, "%zu engines  %lld running  %lld waiting  %.1f tokens/s  %s held",
                top["engines"].size(), static_cast<long long>(running), static_cast<long long>(waiting), tokens,
                FormatBytes(static_cast<double>(bytes)).c_str());
  lines.push_back(text);
  lines.push_back("");
  lines.push_back("ENGINE           STATE    WEIGHTS       RUN  WAIT   TOKENS/S  PROMPT/S  KV CACHE");
  for (const Json& row : top["engines"]) lines.push_back(EngineLine(row));
  if (!top["operations"].empty()) {
    lines.push_back("");
    lines.push_back("OPERATION                            STATE     DONE  TARGET");
    for (const Json& row : top["operations"]) lines.push_back(row["line"].get<std::string>());
  }
  if (rows > 0 && static_cast<int>(lines.size()) > rows) lines.resize(static_cast<size_t>(rows));
  std::string out;
  for (const std::string& line : lines) out += CutToColumns(line, columns) + "\n";
  return out;
}

}  // namespace sage::cli
