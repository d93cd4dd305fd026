// Sections follow the report's members; bars compare the numbers of one member with each other.
#include "client/cli/report_html.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

namespace sage::cli {
namespace {

using Json = nlohmann::ordered_json;
using Bars = std::vector<std::pair<std::string, double>>;

constexpr int kMaxDepth = 6;
constexpr int kBarHeight = 20;
constexpr int kLabelWidth = 320;
constexpr int kBarWidth = 420;

constexpr const char* kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.8em;border-bottom:1px solid #ddd}"
    "table{border-collapse:collapse}td,th{padding:2px 14px 2px 0;text-align:left;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}svg{display:block;margin:.6em 0;max-width:100%}"
    ".met{color:#17692b}.unmet{color:#b3261e;font-weight:bold}";

std::string Escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string Number(double value) {
  char text[48];
  const bool whole = std::floor(value) == value && std::fabs(value) < 1e15;
  std::snprintf(text, sizeof text, whole ? "%.0f" : "%.6g", value);
  return text;
}

std::string Value(const Json& value) {
  if (value.is_number()) return Number(value.get<double>());
  if (value.is_string()) return Escape(value.get<std::string>());
  return Escape(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

// Rows of an object, nested names joined by dots. Arrays of objects have a chart or table of their own.
void AppendRows(const Json& object, const std::string& prefix, int depth, std::string* out) {
  for (const auto& [key, value] : object.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (value.is_object() && depth < kMaxDepth) {
      AppendRows(value, name, depth + 1, out);
    } else if (!(value.is_array() && !value.empty() && value[0].is_object())) {
      *out += "<tr><th>" + Escape(name) + "</th><td class=n>" + Value(value) + "</td></tr>\n";
    }
  }
}

std::string Table(const Json& object) {
  std::string rows;
  AppendRows(object, "", 0, &rows);
  return rows.empty() ? rows : "<table>\n" + rows + "</table>\n";
}

void CollectNumbers(const Json& object, const std::string& prefix, int depth, Bars* bars) {
  for (const auto& [key, value] : object.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (value.is_object() && depth < kMaxDepth) CollectNumbers(value, name, depth + 1, bars);
    if (value.is_number()) bars->emplace_back(name, value.get<double>());
  }
}

std::string Chart(const Bars& bars) {
  double most = 0;
  for (const auto& [name, value] : bars) most = std::max(most, std::fabs(value));
  if (bars.empty() || !(most > 0)) return "";
  const int height = static_cast<int>(bars.size()) * kBarHeight;
  const int width = kLabelWidth + kBarWidth + 120;
  std::string out = "<svg role=img viewBox=\"0 0 " + std::to_string(width) + " " + std::to_string(height) +
                    "\" width=" + std::to_string(width) + " font-size=12>\n";
  for (size_t i = 0; i < bars.size(); ++i) {
    const int y = static_cast<int>(i) * kBarHeight;
    const double length = std::fabs(bars[i].second) / most * kBarWidth;
    out += "<text x=0 y=" + std::to_string(y + 14) + ">" + Escape(bars[i].first) +
           "</text><rect x=" + std::to_string(kLabelWidth) + " y=" + std::to_string(y + 3) +
           " width=" + Number(std::max(1.0, length)) +
           " height=14 fill=\"#4878a8\"/><text x=" + std::to_string(kLabelWidth + static_cast<int>(length) + 6) +
           " y=" + std::to_string(y + 14) + ">" + Number(bars[i].second) + "</text>\n";
  }
  return out + "</svg>\n";
}

// Numbers of unlike units are not comparable: one chart for each last part of the name (weight_bytes, tokens_per_s).
std::string ChartsByUnit(const Json& object) {
  Bars all;
  CollectNumbers(object, "", 0, &all);
  std::vector<std::pair<std::string, Bars>> groups;
  for (const auto& bar : all) {
    const std::string unit = bar.first.substr(bar.first.find_last_of("._") + 1);
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == unit; });
    if (group == groups.end()) group = groups.insert(groups.end(), {unit, {}});
    group->second.push_back(bar);
  }
  std::string out;
  for (const auto& [unit, bars] : groups) {
    if (bars.size() > 1) out += Chart(bars);
  }
  return out;
}

// Arrays of {name, <number>}: layers and their error.
std::string ListCharts(const Json& value) {
  std::string out;
  if (!value.is_array()) return out;
  Bars bars;
  for (const Json& entry : value) {
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string()) continue;
    for (const char* key : {"error", "kl", "value"}) {
      if (!entry.contains(key) || !entry[key].is_number()) continue;
      bars.emplace_back(entry["name"].get<std::string>(), entry[key].get<double>());
      break;
    }
  }
  return Chart(bars);
}

std::string Requirements(const Json& list) {
  std::string out = "<table>\n";
  for (const Json& r : list) {
    const bool met = r.value("met", false);
    out += "<tr><td>" + Escape(r.value("require", "")) + "</td><td class=n>" + Value(r.value("value", Json(nullptr))) +
           "</td><td class=" + (met ? "met>met" : "unmet>not met") + "</td></tr>\n";
  }
  return out + "</table>\n";
}

}  // namespace

std::string ReportHtml(const Json& report) {
  const auto text = [&](const char* key) {
    const auto found = report.find(key);
    return found != report.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  const std::string title = "Quantization report" + (text("artifact").empty() ? "" : ": " + Escape(text("artifact")));
  std::string out = "<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>" + title + "</title><style>" +
                    kStyle + "</style></head><body>\n<h1>" + title + "</h1>\n";
  Json plain = Json::object();
  for (const auto& [key, value] : report.items()) {
    if (!value.is_structured()) plain[key] = value;
  }
  out += Table(plain);
  for (const auto& [key, value] : report.items()) {
    if (!value.is_structured() || value.empty()) continue;
    out += "<h2>" + Escape(key) + "</h2>\n";
    if (key == "requirements") {
      out += Requirements(value);
    } else if (value.is_array()) {
      out += ListCharts(value);
    } else {
      if (key == "kl") {
        Bars bars;
        CollectNumbers(value, "", 0, &bars);
        out += Chart(bars);
      } else if (key == "memory" || key == "speed" || key == "tasks") {
        out += ChartsByUnit(value);
      }
      out += Table(value);
      for (const auto& [inner, list] : value.items()) out += ListCharts(list);
    }
  }
  return out + "</body></html>\n";
}

}  // namespace sage::cli
