// Log-probabilities of the choices of an item.
#include "engine/report/task_score.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int64_t kRowsAtOnce = 128;

// Log-probability of `id` after the row, and whether it is the greedy choice.
struct NextScore {
  double logprob = 0;
  bool greedy = false;
};

absl::StatusOr<NextScore> ScoreNext(const float* logits, int64_t V, int32_t id) {
  const float most = *std::max_element(logits, logits + V);
  double sum = 0;
  for (int64_t v = 0; v < V; ++v) sum += std::exp(static_cast<double>(logits[v]) - most);
  if (!std::isfinite(sum) || !std::isfinite(most)) {
    return MakeError(absl::StatusCode::kInternal, "NON_FINITE_LOGITS", "task: a model gave logits that are not finite");
  }
  return NextScore{static_cast<double>(logits[id]) - most - std::log(sum), logits[id] == most};
}

// The context's last hidden state; the KV pages then hold the context.
absl::Status RunContext(const std::vector<int32_t>& ids, int64_t length, ReportModel& model,
                        std::vector<float>* hidden) {
  const int64_t width = model.decoder().config().hidden, count = static_cast<int64_t>(ids.size());
  std::vector<float> rows(static_cast<size_t>(std::min(kRowsAtOnce, count) * width));
  for (int64_t begin = 0; begin < count; begin += kRowsAtOnce) {
    const int64_t n = std::min(kRowsAtOnce, count - begin);
    SAGE_RETURN_IF_ERROR(
        model.Forward(absl::MakeConstSpan(ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(n)), begin,
                      length, rows.data()));
    hidden->assign(rows.begin() + (n - 1) * width, rows.begin() + n * width);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TaskIds> EncodeItem(const TaskItem& item, const Tokenizer& tokenizer, int64_t window) {
  TaskIds out;
  out.gold = item.gold;
  SAGE_ASSIGN_OR_RETURN(const std::vector<int32_t> context, tokenizer.Encode(item.context, true));
  // Trailing ids (an end token) do not belong before a continuation.
  std::vector<std::vector<int32_t>> whole;
  size_t shared = context.size();
  for (const std::string& choice : item.choices) {
    SAGE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode(item.context + choice, true));
    if (!ids.empty() && tokenizer.eos_id() == ids.back() && ids.size() > 1) ids.pop_back();
    size_t same = 0;  // a tokenizer may join the end of the context with the choice
    while (same < shared && same + 1 < ids.size() && ids[same] == context[same]) ++same;
    shared = same;
    whole.push_back(std::move(ids));
  }
  if (shared == 0) {
    return MakeError(
        absl::StatusCode::kInvalidArgument, "BAD_TASK",
        absl::StrCat("task: context and choices must share a first token: '", item.context.substr(0, 60), "'"));
  }
  size_t longest = 0;
  for (size_t c = 0; c < whole.size(); ++c) {
    out.choices.emplace_back(whole[c].begin() + static_cast<std::ptrdiff_t>(shared), whole[c].end());
    out.choice_bytes.push_back(static_cast<double>(std::max<size_t>(1, item.choices[c].size() - 1)));
    longest = std::max(longest, out.choices.back().size());
  }
  if (static_cast<int64_t>(longest) + 1 > window) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TASK",
                     absl::StrCat("task: a choice must fit the window of ", window, " tokens, got ", longest));
  }
  const size_t room = static_cast<size_t>(window) - longest, cut = shared > room ? shared - room : 0;
  out.context.assign(context.begin() + static_cast<std::ptrdiff_t>(cut),
                     context.begin() + static_cast<std::ptrdiff_t>(shared));
  return out;
}

absl::StatusOr<ItemScore> ScoreItem(const TaskIds& ids, ReportModel& model) {
  const int64_t V = model.decoder().config().V, width = model.decoder().config().hidden;
  const int64_t context = static_cast<int64_t>(ids.context.size());
  ItemScore out;
  std::vector<float> before, hidden, logits(static_cast<size_t>(V));
  SAGE_RETURN_IF_ERROR(RunContext(ids.context, context, model, &before));
  double best = 0, best_normalized = 0;
  for (size_t c = 0; c < ids.choices.size(); ++c) {
    const std::vector<int32_t>& choice = ids.choices[c];
    const size_t rows = choice.size();
    hidden.assign(before.begin(), before.end());
    hidden.resize(rows * static_cast<size_t>(width));
    if (rows > 1) {
      SAGE_RETURN_IF_ERROR(
          model.Forward(absl::MakeConstSpan(choice).first(rows - 1), context, context, hidden.data() + width));
    }
    double total = 0;
    bool greedy = true;
    for (size_t r = 0; r < rows; ++r) {
      SAGE_RETURN_IF_ERROR(model.Logits(hidden.data() + static_cast<int64_t>(r) * width, 1, logits.data()));
      SAGE_ASSIGN_OR_RETURN(const NextScore next, ScoreNext(logits.data(), V, choice[r]));
      total += next.logprob;
      greedy = greedy && next.greedy;
    }
    const double normalized = total / ids.choice_bytes[c];
    const bool gold = static_cast<int>(c) == ids.gold;
    if (c == 0 || total > best) {
      best = total;
      out.picked = static_cast<int>(c);
      out.right = gold;
    }
    if (c == 0 || normalized > best_normalized) {
      best_normalized = normalized;
      out.right_normalized = gold;
    }
    if (gold) out.gold_nll = -total;
    if (ids.choices.size() == 1) {
      out.right = out.right_normalized = greedy;
      out.picked = greedy ? 1 : 0;
    }
  }
  return out;
}

Json CompareTask(const std::vector<ItemScore>& quantized, const std::vector<ItemScore>& reference, bool one_choice) {
  const double n = static_cast<double>(quantized.size());
  const auto compare = [&](bool ItemScore::*field) {
    double q = 0, r = 0, square = 0;
    for (size_t i = 0; i < quantized.size(); ++i) {
      const double a = quantized[i].*field ? 1 : 0, b = reference[i].*field ? 1 : 0;
      q += a;
      r += b;
      square += (a - b) * (a - b);
    }
    const double delta = (q - r) / n;
    const double variance = n > 1 ? std::max(0.0, square / n - delta * delta) / (n - 1) : 0;
    const double half = 1.96 * std::sqrt(variance);
    return Json{
        {"quantized", q / n}, {"reference", r / n}, {"delta", delta}, {"interval", {delta - half, delta + half}}};
  };
  double agreed = 0, nll_q = 0, nll_r = 0;
  for (size_t i = 0; i < quantized.size(); ++i) {
    agreed += quantized[i].picked == reference[i].picked ? 1 : 0;
    nll_q += quantized[i].gold_nll;
    nll_r += reference[i].gold_nll;
  }
  Json out = {{"items", quantized.size()}, {"accuracy", compare(&ItemScore::right)}, {"agreement", agreed / n}};
  if (one_choice) {
    out["perplexity"] = {{"quantized", std::exp(nll_q / n)}, {"reference", std::exp(nll_r / n)}};
  } else {
    out["accuracy_norm"] = compare(&ItemScore::right_normalized);
  }
  return out;
}

}  // namespace sage
