// Draws progress bars with ANSI codes on a terminal and prints sparse lines elsewhere.
#include "client/cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace sage::cli {
namespace {

constexpr int kPipeStepPercent = 10;

}  // namespace

int TerminalColumns(FILE* stream) {
  winsize size{};
  if (isatty(fileno(stream)) != 1) return 0;
  return ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string FormatSeconds(double seconds) {
  char text[32];
  if (seconds < 60) {
    std::snprintf(text, sizeof text, "%.1fs", seconds);
  } else if (seconds < 3600) {
    std::snprintf(text, sizeof text, "%dm %02ds", static_cast<int>(seconds) / 60, static_cast<int>(seconds) % 60);
  } else {
    std::snprintf(text, sizeof text, "%dh %02dm", static_cast<int>(seconds) / 3600,
                  static_cast<int>(seconds) / 60 % 60);
  }
  return text;
}

std::string FormatBytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 1000 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
  return text;
}

ProgressPrinter::ProgressPrinter(std::string title, bool quiet)
    : title_(std::move(title)), quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressPrinter::~ProgressPrinter() { Finish(); }

void ProgressPrinter::Update(const std::string& stage, int64_t done, int64_t total, const std::string& unit,
                             double eta_seconds) {
  if (quiet_ || total <= 0) return;
  const double eta = eta_seconds;
  if (terminal_) {
    PrintBar(stage, done, total, unit, eta);
  } else {
    PrintLine(stage, done, total, unit, eta);
  }
}

void ProgressPrinter::PrintBar(const std::string& stage, int64_t done, int64_t total, const std::string& unit,
                               double eta) {
  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  char tail[160];
  std::snprintf(tail, sizeof tail, " %3d%% %lld/%lld %s%s%s", static_cast<int>(share * 100),
                static_cast<long long>(done), static_cast<long long>(total), unit.c_str(), eta >= 0 ? ", ETA " : "",
                eta >= 0 ? FormatSeconds(eta).c_str() : "");
  const std::string head = title_ + (stage.empty() ? "" : " " + stage) + " ";
  const int room = TerminalColumns(stderr) - static_cast<int>(head.size() + std::string(tail).size()) - 3;
  const int width = std::clamp(room, 5, 40);
  const int filled = static_cast<int>(share * width + 0.5);
  std::string bar;
  for (int i = 0; i < width; ++i) bar += i < filled ? "█" : "░";
  std::fprintf(stderr, "\r\033[K%s%s%s", head.c_str(), bar.c_str(), tail);
  std::fflush(stderr);
  open_line_ = true;
}

void ProgressPrinter::PrintLine(const std::string& stage, int64_t done, int64_t total, const std::string& unit,
                                double eta) {
  const int percent = static_cast<int>(100 * done / total);
  const bool new_stage = stage != last_stage_;
  if (!new_stage && percent / kPipeStepPercent == last_percent_ / kPipeStepPercent && percent != 100) return;
  if (!new_stage && percent == last_percent_) return;
  last_percent_ = percent;
  last_stage_ = stage;
  std::fprintf(stderr, "%s%s%s: %d%% (%lld/%lld %s)%s%s\n", title_.c_str(), stage.empty() ? "" : " ", stage.c_str(),
               percent, static_cast<long long>(done), static_cast<long long>(total), unit.c_str(),
               eta >= 0 ? ", ETA " : "", eta >= 0 ? FormatSeconds(eta).c_str() : "");
}

void ProgressPrinter::Finish() {
  if (open_line_) std::fprintf(stderr, "\n");
  open_line_ = false;
}

}  // namespace sage::cli
