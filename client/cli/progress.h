// Progress of long work on stderr: a bar with percent and ETA on a terminal, one plain line each few percent in a pipe.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace sage::cli {

class ProgressPrinter {
 public:
  // `quiet` prints nothing. The clock starts now.
  ProgressPrinter(std::string title, bool quiet);
  ~ProgressPrinter();
  ProgressPrinter(const ProgressPrinter&) = delete;
  ProgressPrinter& operator=(const ProgressPrinter&) = delete;

  // `eta_seconds` < 0 = unknown (then estimated from the rate so far).
  void Update(const std::string& stage, int64_t done, int64_t total, const std::string& unit, double eta_seconds);
  // Ends the bar's line.
  void Finish();

 private:
  void PrintBar(const std::string& stage, int64_t done, int64_t total, const std::string& unit, double eta);
  void PrintLine(const std::string& stage, int64_t done, int64_t total, const std::string& unit, double eta);

  std::string title_;
  bool quiet_;
  bool terminal_;
  bool open_line_ = false;
  int last_percent_ = -1;
  std::string last_stage_;
};

// The width of the terminal that `stream` goes to; 0 when it is none.
int TerminalColumns(FILE* stream);
// "1m 05s", "3.2s".
std::string FormatSeconds(double seconds);
// "135.2 MB".
std::string FormatBytes(double bytes);

}  // namespace sage::cli
