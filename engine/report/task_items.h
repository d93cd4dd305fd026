// Benchmark questions as a language model sees them: a context and the continuations to compare. The prompts are those
// of the LM Evaluation Harness (0.4: arc_easy, arc_challenge, hellaswag, mmlu, lambada_openai), so figures compare.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sage {

struct TaskItem {
  std::string context;
  std::vector<std::string> choices;  // with their leading space; one choice: the words a text must end with
  int gold = 0;
};

// Up to `limit` items (0 = all), evenly spread over everything in `folder`, in the order of the files' names. The rows'
// own fields say what they are: {question{stem choices} answerKey}, {query choices gold}, {ctx_a ctx_b endings label},
// {text}; CSV files are MMLU's (question, A, B, C, D, answer), with the first five rows of dev/ shown before each
// question. Of several files with "test", "validation" or "val" in their names only those of the first kind there is
// are read; `name` chooses among ARC's easy and challenge files. INVALID_ARGUMENT (BAD_TASK) names file and line.
absl::StatusOr<std::vector<TaskItem>> ReadTask(const std::string& name, const std::string& folder, int64_t limit);

}  // namespace sage
