// Unigram segmentation by Viterbi, and WordPiece's greedy longest match.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/subword_model.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

constexpr double kUnkPenalty = 10.0;

struct Node {
  double score = 0;
  int64_t begin = -1;
  int32_t id = -1;
};

absl::Status NoUnk() {
  return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                   "tokenizer model: text outside the vocabulary needs an unknown token, got none");
}

// `candidate` replaces what is there when nothing is, or when it scores higher.
void Offer(Node& node, double score, size_t begin, int32_t id) {
  if (node.begin >= 0 && !(score > node.score)) return;
  node = {score, static_cast<int64_t>(begin), id};
}

}  // namespace

absl::Status UnigramModel::Tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  std::vector<Node> best(word.size() + 1);
  const auto round = [&](double x) { return single_precision ? static_cast<double>(static_cast<float>(x)) : x; };
  const double unk_score = round(min_score - kUnkPenalty);
  for (size_t at = 0; at < word.size();) {
    const size_t size = DecodeUtf8(word, at).size;
    const double here = best[at].score;
    bool single = false;
    pieces.ForEachPrefix(word.substr(at), [&](size_t length, int32_t id) {
      double score = scores[id];
      if (!user_defined.empty() && user_defined[id]) score = round(static_cast<double>(length) * max_score - 0.1);
      Offer(best[at + length], round(score + here), at, id);
      single = single || length == size;
    });
    if (!single) {
      if (unk_id < 0) return NoUnk();
      Offer(best[at + size], round(unk_score + here), at, unk_id);
    }
    at += size;
  }
  std::vector<std::pair<size_t, size_t>> spans;  // from the end; neighbouring unknowns are one
  bool last_unk = false;
  for (size_t end = word.size(); end > 0;) {
    const Node& node = best[end];
    const size_t begin = static_cast<size_t>(node.begin);
    const bool unk = node.id == unk_id && unk_id >= 0;
    if (unk && last_unk) {
      spans.back().first = begin;
    } else {
      spans.push_back({begin, end});
    }
    last_unk = unk;
    end = begin;
  }
  for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
    const std::string_view text = word.substr(span->first, span->second - span->first);
    const Node& node = best[span->second];
    if (node.id != unk_id) {
      ids.push_back(node.id);
      continue;
    }
    if (const auto id = vocabulary.Find(text); id && !single_precision) {
      ids.push_back(*id);
      continue;
    }
    const size_t before = ids.size();
    if (byte_fallback) {
      for (char c : text) {
        const auto id = vocabulary.Find(ByteToken(static_cast<uint8_t>(c)));
        if (!id) break;
        ids.push_back(*id);
      }
      if (ids.size() - before == text.size()) continue;
      ids.resize(before);
    }
    ids.push_back(unk_id);
  }
  return absl::OkStatus();
}

absl::Status WordPieceModel::Tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  int64_t chars = 0;
  for (size_t at = 0; at < word.size(); at += DecodeUtf8(word, at).size) ++chars;
  const size_t before = ids.size();
  bool bad = chars > max_chars;
  for (size_t at = 0; at < word.size() && !bad;) {
    size_t end = word.size();
    std::optional<int32_t> id;
    while (end > at) {
      const std::string piece = absl::StrCat(at > 0 ? continuing_prefix : "", std::string(word.substr(at, end - at)));
      id = vocabulary.Find(piece);
      if (id) break;
      --end;
      while (end > at && (static_cast<uint8_t>(word[end]) & 0xC0) == 0x80) --end;
    }
    bad = !id;
    if (id) ids.push_back(*id);
    at = end;
  }
  if (!bad) return absl::OkStatus();
  ids.resize(before);
  const auto unk = vocabulary.Find(unk_token);
  if (!unk) return NoUnk();
  ids.push_back(*unk);
  return absl::OkStatus();
}

}  // namespace sage
