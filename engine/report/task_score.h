// Scores benchmark items on two models with the same ids, and compares them item by item.
#pragma once

#include <string>
#include <vector>

#include "engine/report/language_model.h"
#include "engine/report/task_items.h"
#include "engine/tokenizer/tokenizer.h"

namespace sage {

// An item in ids. The context is shared by the choices; it is cut from the left when an item exceeds the window.
struct TaskIds {
  std::vector<int32_t> context;               // at least one id
  std::vector<std::vector<int32_t>> choices;  // at least one id each
  std::vector<double> choice_bytes;
  int gold = 0;
};
absl::StatusOr<TaskIds> EncodeItem(const TaskItem& item, const Tokenizer& tokenizer, int64_t window);

// What one model says of one item.
struct ItemScore {
  bool right = false;             // the gold choice has the largest log-probability, or is what greedy decoding gives
  bool right_normalized = false;  // ... per byte of text
  int picked = 0;
  double gold_nll = 0;
};
absl::StatusOr<ItemScore> ScoreItem(const TaskIds& ids, ReportModel& model);

// {items, accuracy{quantized reference delta interval}, accuracy_norm{...} | perplexity{quantized reference},
// agreement}: interval is the paired 95 % interval of the delta.
Json CompareTask(const std::vector<ItemScore>& quantized, const std::vector<ItemScore>& reference, bool one_choice);

}  // namespace sage
