// Byte pair encoding by rank and by score, with a heap and a linked list so that one long word stays n log n.
#include <queue>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/subword_model.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

struct Symbol {
  int32_t id;
  int32_t previous;
  int32_t next;
  bool dead = false;
};

struct Candidate {
  uint32_t rank;
  int32_t at;
  int32_t id;
  bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
};

using CandidateHeap = std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>>;

void PushPair(const BpeModel& model, const std::vector<Symbol>& symbols, int32_t left, CandidateHeap& heap) {
  if (left < 0 || symbols[left].next < 0) return;
  const auto it = model.merges.find(BpeModel::PairKey(symbols[left].id, symbols[symbols[left].next].id));
  if (it != model.merges.end()) heap.push({it->second.rank, left, it->second.id});
}

void MergeAll(const BpeModel& model, std::vector<Symbol>& symbols) {
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  CandidateHeap heap(std::greater<Candidate>(), std::move(storage));
  for (size_t i = 0; i + 1 < symbols.size(); ++i) PushPair(model, symbols, static_cast<int32_t>(i), heap);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.at];
    if (left.dead || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const auto it = model.merges.find(BpeModel::PairKey(left.id, right.id));
    if (it == model.merges.end() || it->second.id != top.id) continue;  // one side has changed since
    left.id = top.id;
    right.dead = true;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = top.at;
    PushPair(model, symbols, left.previous, heap);
    PushPair(model, symbols, top.at, heap);
  }
}

absl::Status MissingUnk(std::string_view token) {
  return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                   absl::StrCat("tokenizer BPE: unk_token must be in the vocabulary, got '", std::string(token), "'"));
}

}  // namespace

std::string ByteToken(uint8_t byte) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string token = "<0x00>";
  token[3] = kDigits[byte >> 4];
  token[4] = kDigits[byte & 15];
  return token;
}

int ParseByteToken(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (char c : token.substr(3, 2)) {
    int digit = -1;
    if (c >= '0' && c <= '9') digit = c - '0';
    if (c >= 'A' && c <= 'F') digit = c - 'A' + 10;
    if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::vector<int32_t> FindByteTokens(const Vocabulary& vocabulary) {
  std::vector<int32_t> ids;
  for (int b = 0; b < 256; ++b) {
    const auto id = vocabulary.Find(ByteToken(static_cast<uint8_t>(b)));
    if (!id) return {};
    ids.push_back(*id);
  }
  return ids;
}

absl::Status BpeModel::SetMerges(const std::vector<std::pair<std::string, std::string>>& pairs) {
  merges.reserve(pairs.size());
  uint32_t rank = 0;
  for (const auto& [left, right] : pairs) {
    const auto a = vocabulary.Find(left), b = vocabulary.Find(right);
    std::optional<int32_t> merged;
    if (right.size() >= continuing_prefix.size())
      merged = vocabulary.Find(left + right.substr(continuing_prefix.size()));
    if (!a || !b || !merged) {
      return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                       absl::StrCat("tokenizer merges: both sides and their union must be tokens, got merge ", rank,
                                    " '", left.substr(0, 80), "' + '", right.substr(0, 80), "'"));
    }
    merges[PairKey(*a, *b)] = {rank++, *merged};
  }
  return absl::OkStatus();
}

absl::Status BpeModel::Tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges) {
    if (const auto id = vocabulary.Find(word)) {
      ids.push_back(*id);
      return absl::OkStatus();
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  const auto add = [&](int32_t id) { symbols.push_back({id, 0, 0}); };
  constexpr int32_t kNone = -1;
  int32_t pending_unk = kNone;
  std::string decorated;
  for (size_t at = 0; at < word.size();) {
    const size_t size = DecodeUtf8(word, at).size;
    std::string_view piece = word.substr(at, size);
    const bool first = at == 0, last = at + size == word.size();
    at += size;
    if ((!first && !continuing_prefix.empty()) || (last && !end_suffix.empty())) {
      decorated = absl::StrCat(first ? "" : continuing_prefix, std::string(piece), last ? end_suffix : "");
      piece = decorated;
    }
    if (const auto id = vocabulary.Find(piece)) {
      if (pending_unk != kNone) add(pending_unk);
      pending_unk = kNone;
      add(*id);
      continue;
    }
    if (byte_fallback) {
      std::vector<int32_t> bytes;
      for (char c : piece) {
        const auto id = vocabulary.Find(ByteToken(static_cast<uint8_t>(c)));
        if (!id) break;
        bytes.push_back(*id);
      }
      if (bytes.size() == piece.size()) {  // the reference leaves a waiting unk behind these bytes, and so do we
        for (int32_t id : bytes) add(id);
        continue;
      }
    }
    if (!has_unk) continue;
    const auto unk = vocabulary.Find(unk_token);
    if (!unk) return MissingUnk(unk_token);
    if (pending_unk != kNone && !fuse_unk) add(pending_unk);
    pending_unk = *unk;
  }
  if (pending_unk != kNone) add(pending_unk);
  const int32_t count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  MergeAll(*this, symbols);
  for (const Symbol& symbol : symbols) {
    if (!symbol.dead) ids.push_back(symbol.id);
  }
  return absl::OkStatus();
}

}  // namespace sage
