// SentencePiece's BPE: neighbours merge when their joined text is a piece, best score first.
#include <queue>

#include "engine/tokenizer/subword_model.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

struct Piece {
  size_t begin;
  size_t size;  // 0 once merged away
  int32_t previous;
  int32_t next;
  bool frozen;
};

struct PairToMerge {
  float score;
  int32_t left;
  int32_t right;
  size_t size;  // bytes of both sides when this was pushed
  bool operator<(const PairToMerge& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

class Merger {
 public:
  Merger(const ScoreBpeModel& model, std::string_view word) : model_(model), word_(word) {
    for (size_t at = 0; at < word.size();) {
      size_t size = model.user_defined.Longest(word.substr(at)).first;
      const bool frozen = size > 0;
      if (!frozen) size = DecodeUtf8(word, at).size;
      const int32_t i = static_cast<int32_t>(pieces_.size());
      pieces_.push_back({at, size, i - 1, i + 1, frozen});
      at += size;
    }
    if (!pieces_.empty()) pieces_.back().next = -1;
  }

  void Run(std::vector<int32_t>& ids) {
    for (size_t i = 0; i + 1 < pieces_.size(); ++i) Push(static_cast<int32_t>(i));
    while (!heap_.empty()) {
      const PairToMerge top = heap_.top();
      heap_.pop();
      Piece& left = pieces_[top.left];
      Piece& right = pieces_[top.right];
      if (left.size == 0 || right.size == 0 || left.size + right.size != top.size) continue;
      left.size += right.size;
      right.size = 0;
      left.next = right.next;
      if (right.next >= 0) pieces_[right.next].previous = top.left;
      Push(left.previous);
      Push(top.left);
    }
    for (const Piece& piece : pieces_) {
      if (piece.size > 0) Emit(word_.substr(piece.begin, piece.size), ids);
    }
  }

 private:
  std::optional<int32_t> Find(std::string_view text) const {
    const auto id = model_.vocabulary.Find(text);
    if (!id || !model_.usable[*id]) return std::nullopt;
    return id;
  }

  void Push(int32_t left) {
    if (left < 0 || pieces_[left].next < 0) return;
    const int32_t right = pieces_[left].next;
    const Piece &a = pieces_[left], &b = pieces_[right];
    if (a.frozen || b.frozen) return;
    const std::string_view joined = word_.substr(a.begin, a.size + b.size);
    const auto id = Find(joined);
    if (!id) return;
    heap_.push({model_.scores[*id], left, right, joined.size()});
    if (model_.unused[*id]) parts_.try_emplace(std::string(joined), a.size);
  }

  // One final piece: its id, the halves of a piece the model only builds on, byte tokens, or unknown.
  void Emit(std::string_view text, std::vector<int32_t>& ids) {
    std::vector<std::string_view> stack{text};
    while (!stack.empty()) {
      const std::string_view top = stack.back();
      stack.pop_back();
      const auto id = Find(top);
      if (id && !model_.unused[*id]) {
        ids.push_back(*id);
        last_unk_ = false;
        continue;
      }
      const auto part = id ? parts_.find(top) : parts_.end();
      if (part != parts_.end()) {
        stack.push_back(top.substr(part->second));
        stack.push_back(top.substr(0, part->second));
      } else if (!model_.byte_ids.empty()) {
        for (char c : top) ids.push_back(model_.byte_ids[static_cast<uint8_t>(c)]);
      } else if (model_.unk_id >= 0) {
        if (!(last_unk_ && model_.fuse_unk)) ids.push_back(model_.unk_id);
        last_unk_ = true;
      }
    }
  }

  const ScoreBpeModel& model_;
  std::string_view word_;
  std::vector<Piece> pieces_;
  std::priority_queue<PairToMerge> heap_;
  TextMap<size_t> parts_;  // where an unused piece was joined
  bool last_unk_ = false;
};

}  // namespace

absl::Status ScoreBpeModel::Tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  Merger(*this, word).Run(ids);
  return absl::OkStatus();
}

}  // namespace sage
