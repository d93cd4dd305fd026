// SentencePiece models (a bounded reader of the ModelProto) and llama2.c's tokenizer.bin.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/loaders.h"
#include "engine/tokenizer/piece_files.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

// One field of a protobuf message.
struct Field {
  uint32_t number = 0;
  uint64_t value = 0;      // varint, or the bits of a fixed field
  std::string_view bytes;  // length-delimited
};

class MessageReader {
 public:
  explicit MessageReader(std::string_view bytes) : in_(bytes) {}
  bool ok() const { return ok_; }
  bool Next(Field* field) {
    if (in_.empty() || !ok_) return false;
    uint64_t key = 0;
    *field = {};
    ok_ = Varint(&key);
    field->number = static_cast<uint32_t>(key >> 3);
    const int type = static_cast<int>(key & 7);
    if (type == 0) {
      ok_ = ok_ && Varint(&field->value);
    } else if (type == 1 || type == 5) {
      const size_t size = type == 1 ? 8 : 4;
      ok_ = ok_ && in_.size() >= size;
      if (ok_) std::memcpy(&field->value, in_.data(), size);
      if (ok_) in_.remove_prefix(size);
    } else if (type == 2) {
      uint64_t size = 0;
      ok_ = ok_ && Varint(&size) && size <= in_.size();
      if (ok_) field->bytes = in_.substr(0, size);
      if (ok_) in_.remove_prefix(size);
    } else {
      ok_ = false;
    }
    return ok_;
  }

 private:
  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && !in_.empty(); shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(in_[0]);
      in_.remove_prefix(1);
      *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  std::string_view in_;
  bool ok_ = true;
};

float AsFloat(uint64_t bits) {
  const uint32_t low = static_cast<uint32_t>(bits);
  float value;
  std::memcpy(&value, &low, 4);
  return value;
}

struct ModelFile {
  std::vector<ScoredPiece> pieces;
  uint64_t model_type = 1;
  bool byte_fallback = false;
  std::string_view charsmap;
  SentencePieceRules rules;
  int32_t bos = 1, eos = 2;
};

absl::Status ReadModelFile(std::string_view bytes, ModelFile& out) {
  MessageReader model(bytes);
  Field f, g;
  while (model.Next(&f)) {
    MessageReader part(f.bytes);
    if (f.number == 1) {
      ScoredPiece piece;
      while (part.Next(&g)) {
        if (g.number == 1) piece.text = std::string(g.bytes);
        if (g.number == 2) piece.score = AsFloat(g.value);
        if (g.number == 3) piece.kind = static_cast<PieceKind>(std::min<uint64_t>(g.value, 7));
      }
      out.pieces.push_back(std::move(piece));
    } else if (f.number == 2) {
      while (part.Next(&g)) {
        if (g.number == 3) out.model_type = g.value;
        if (g.number == 24) out.rules.whitespace_as_suffix = g.value != 0;
        if (g.number == 35) out.byte_fallback = g.value != 0;
        if (g.number == 41) out.bos = static_cast<int32_t>(g.value);
        if (g.number == 42) out.eos = static_cast<int32_t>(g.value);
      }
    } else if (f.number == 3) {
      while (part.Next(&g)) {
        if (g.number == 2) out.charsmap = g.bytes;
        if (g.number == 3) out.rules.add_dummy_prefix = g.value != 0;
        if (g.number == 4) out.rules.remove_extra_whitespaces = g.value != 0;
        if (g.number == 5) out.rules.escape_whitespaces = g.value != 0;
      }
    }
    if (!part.ok()) return InvalidTokenizer("SentencePiece model: a message is cut off or malformed");
  }
  if (!model.ok() || out.pieces.empty())
    return InvalidTokenizer("SentencePiece model: must hold pieces and end where the file ends");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SubwordModel>> MakeScoredModel(const std::vector<ScoredPiece>& pieces, bool unigram,
                                                              bool byte_fallback, bool match_user_defined) {
  auto bpe = std::make_unique<ScoreBpeModel>();
  auto uni = std::make_unique<UnigramModel>();
  std::vector<std::pair<std::string, int32_t>> entries, user;
  Vocabulary vocabulary;
  bool first = true;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const ScoredPiece& piece = pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    // A token spelled twice keeps its first id, as the reference's look-up does.
    if (!piece.text.empty() && vocabulary.Find(piece.text))
      return InvalidTokenizer(absl::StrCat("piece ", i, " is there twice"));
    SAGE_RETURN_IF_ERROR(vocabulary.Add(piece.text, id));
    const bool defined = piece.kind == PieceKind::kUserDefined;
    const bool plain = piece.kind == PieceKind::kNormal || defined || piece.kind == PieceKind::kUnused;
    bpe->scores.push_back(piece.score);
    bpe->usable.push_back(plain);
    bpe->unused.push_back(piece.kind == PieceKind::kUnused);
    uni->scores.push_back(piece.score);
    uni->user_defined.push_back(defined);
    if (piece.kind == PieceKind::kUnknown) bpe->unk_id = uni->unk_id = id;
    if (piece.kind == PieceKind::kNormal) {
      uni->min_score = first ? piece.score : std::min<double>(uni->min_score, piece.score);
      uni->max_score = first ? piece.score : std::max<double>(uni->max_score, piece.score);
      first = false;
    }
    if (plain && piece.kind != PieceKind::kUnused) entries.push_back({piece.text, id});
    if (defined && match_user_defined) user.push_back({piece.text, id});
  }
  if (unigram) {
    uni->vocabulary = std::move(vocabulary);
    uni->pieces = PrefixIndex(std::move(entries));
    uni->byte_fallback = byte_fallback;
    uni->single_precision = true;
    return uni;
  }
  bpe->user_defined = PrefixIndex(std::move(user));
  if (byte_fallback) bpe->byte_ids = FindByteTokens(vocabulary);
  bpe->vocabulary = std::move(vocabulary);
  return bpe;
}

absl::StatusOr<PipelinePtr> ParseSentencePiece(std::string_view bytes, const Json& config) {
  ModelFile file;
  SAGE_RETURN_IF_ERROR(ReadModelFile(bytes, file));
  if (file.model_type != 1 && file.model_type != 2) {
    return MakeError(absl::StatusCode::kUnimplemented, "TOKENIZER_UNSUPPORTED",
                     absl::StrCat("SentencePiece model_type must be unigram (1) or BPE (2), got ", file.model_type));
  }
  auto out = std::make_shared<PipelineTokenizer>();
  const bool unigram = file.model_type == 1;
  SAGE_ASSIGN_OR_RETURN(out->model, MakeScoredModel(file.pieces, unigram, file.byte_fallback, true));
  const bool strip = file.rules.add_dummy_prefix;
  SAGE_ASSIGN_OR_RETURN(file.rules.map, PrecompiledMap::Parse(file.charsmap));
  std::vector<std::pair<std::string, int32_t>> user;
  std::vector<AddedToken> added;
  for (size_t i = 0; i < file.pieces.size(); ++i) {
    const ScoredPiece& piece = file.pieces[i];
    if (piece.kind == PieceKind::kUserDefined) user.push_back({piece.text, static_cast<int32_t>(i)});
    if (piece.kind != PieceKind::kControl && piece.kind != PieceKind::kUnknown) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(i);
    token.content = piece.text;
    token.special = true;
    added.push_back(std::move(token));
  }
  file.rules.user_defined = PrefixIndex(std::move(user));
  out->normalizers.push_back(MakeSentencePieceNormalizer(std::move(file.rules)));
  out->decoder = SpmDecoder(strip);
  const int32_t count = static_cast<int32_t>(file.pieces.size());
  if (file.bos >= 0 && file.bos < count) out->bos = file.bos;
  if (file.eos >= 0 && file.eos < count) out->eos = file.eos;
  const Json empty = Json::object();
  const Json& settings = config.is_object() ? config : empty;
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(settings, "tokenizer_class", ""));
  const bool t5 = type.rfind("T5", 0) == 0;
  SAGE_ASSIGN_OR_RETURN(const bool add_bos, JsonBool(settings, "add_bos_token", !t5));
  SAGE_ASSIGN_OR_RETURN(const bool add_eos, JsonBool(settings, "add_eos_token", t5));
  if (add_bos && out->bos) out->prefix_ids = {*out->bos};
  if (add_eos && out->eos) out->suffix_ids = {*out->eos};
  SAGE_RETURN_IF_ERROR(out->AddTokens(added));
  SAGE_RETURN_IF_ERROR(out->Finish());
  out->kind_name = "sentencepiece";
  return out;
}

absl::StatusOr<std::vector<ScoredPiece>> ReadSentencePieces(std::string_view bytes) {
  ModelFile file;
  SAGE_RETURN_IF_ERROR(ReadModelFile(bytes, file));
  if (file.model_type != 2) {
    return MakeError(absl::StatusCode::kUnimplemented, "TOKENIZER_UNSUPPORTED",
                     absl::StrCat("SentencePiece model_type must be BPE (2) here, got ", file.model_type));
  }
  return std::move(file.pieces);
}

absl::StatusOr<std::vector<ScoredPiece>> ReadLlama2cPieces(std::string_view bytes) {
  std::vector<ScoredPiece> pieces;
  size_t at = 4;
  while (at + 8 <= bytes.size()) {
    ScoredPiece piece;
    int32_t length = 0;
    std::memcpy(&piece.score, bytes.data() + at, 4);
    std::memcpy(&length, bytes.data() + at + 4, 4);
    at += 8;
    if (length < 0 || static_cast<size_t>(length) > bytes.size() - at)
      return InvalidTokenizer("tokenizer.bin: a token is cut off");
    piece.text = std::string(bytes.substr(at, length));
    at += static_cast<size_t>(length);
    // The format keeps no kinds: ids 0 to 2 are the special ones, the next 256 the bytes.
    const size_t id = pieces.size();
    if (id == 0) piece.kind = PieceKind::kUnknown;
    if (id == 1 || id == 2) piece = {id == 1 ? "<s>" : "</s>", 0, PieceKind::kControl};
    if (ParseByteToken(piece.text) >= 0) piece.kind = PieceKind::kByte;
    pieces.push_back(std::move(piece));
  }
  if (at != bytes.size() || pieces.size() < 259)
    return InvalidTokenizer("tokenizer.bin: must hold 259 or more whole tokens");
  return pieces;
}

absl::StatusOr<PipelinePtr> ParseLlama2c(std::string_view bytes) {
  SAGE_ASSIGN_OR_RETURN(const std::vector<ScoredPiece> pieces, ReadLlama2cPieces(bytes));
  auto out = std::make_shared<PipelineTokenizer>();
  SAGE_ASSIGN_OR_RETURN(out->model, MakeScoredModel(pieces, false, true, false));
  out->normalizers.push_back(MakePrepend(" "));
  out->decoder = SpmDecoder(true);
  out->bos = 1;
  out->eos = 2;
  out->prefix_ids = {1};
  std::vector<AddedToken> added(3);
  for (int32_t i = 0; i < 3; ++i) {
    added[i].id = i;
    added[i].content = pieces[i].text;
    added[i].special = true;
  }
  SAGE_RETURN_IF_ERROR(out->AddTokens(added));
  SAGE_RETURN_IF_ERROR(out->Finish());
  out->kind_name = "llama2.c";
  return out;
}

}  // namespace sage
