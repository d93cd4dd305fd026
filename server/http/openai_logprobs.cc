// One id alone says little: its bytes may be a part of a character, and its space belongs to the text only where
// something stands before it.
#include "server/http/openai_logprobs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/unicode.h"

namespace sage::server {
namespace {

std::string BytesOf(const Tokenizer* tokenizer, int32_t id, bool begun) {
  if (tokenizer == nullptr) return absl::StrCat("token_id:", id);
  if (begun || tokenizer->IsSpecial(id) || tokenizer->InByteRun(id)) {
    return tokenizer->TokenBytes(id, false).value_or(std::string());
  }
  const int32_t ids[] = {id};
  return tokenizer->DecodePart(ids, false, /*first=*/true);
}

// An alternative that would vanish at the beginning of a text (a space alone) is called as it would be within.
std::string AlternativeBytes(const Tokenizer* tokenizer, int32_t id, bool begun) {
  const std::string bytes = BytesOf(tokenizer, id, begun);
  return bytes.empty() ? BytesOf(tokenizer, id, true) : bytes;
}

// Where it stands in the text, and moves on behind it. Characters are counted by their first bytes, so that the parts
// of one that several tokens share count once.
std::string Tell(const Tokenizer* tokenizer, int32_t id, ToldText& told) {
  std::string bytes = BytesOf(tokenizer, id, told.begun);
  if (tokenizer != nullptr && told.skips_special && tokenizer->IsSpecial(id)) return bytes;
  told.begun = true;
  told.characters +=
      std::count_if(bytes.begin(), bytes.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
  return bytes;
}

Json ByteList(const std::string& text) {
  Json bytes = Json::array();
  for (const unsigned char c : text) bytes.push_back(c);
  return bytes;
}

// The first of equal names belongs to the token itself, where it is among them.
Json TopByName(const Tokenizer* tokenizer, const TokenRecord& token, const std::string& name, bool begun) {
  Json top = Json::object();
  for (const bool itself : {true, false}) {
    for (const TokenLogprob& other : token.top) {
      if ((other.id == token.id) != itself) continue;
      std::string key = itself ? name : LossyUtf8(AlternativeBytes(tokenizer, other.id, begun));
      if (top.contains(key) || (!itself && key == name)) key = absl::StrCat("token_id:", other.id);
      top[key] = other.logprob;
    }
  }
  return top;
}

}  // namespace

Json CompletionLogprobs(const Tokenizer* tokenizer, const std::vector<TokenRecord>& tokens, bool no_first,
                        ToldText& told) {
  Json names = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const TokenRecord& token : tokens) {
    const bool none = no_first && names.empty(), begun = told.begun;
    offsets.push_back(told.characters);
    const std::string name = LossyUtf8(Tell(tokenizer, token.id, told));
    names.push_back(name);
    values.push_back(none ? Json(nullptr) : Json(token.logprob));
    tops.push_back(none ? Json(nullptr) : TopByName(tokenizer, token, name, begun));
  }
  return {{"tokens", names}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

Json ChatLogprobs(const Tokenizer* tokenizer, const std::vector<TokenRecord>& tokens, ToldText& told) {
  Json content = Json::array();
  for (const TokenRecord& token : tokens) {
    Json top = Json::array();
    for (const TokenLogprob& other : token.top) {
      const std::string bytes = AlternativeBytes(tokenizer, other.id, told.begun);
      top.push_back({{"token", LossyUtf8(bytes)}, {"logprob", other.logprob}, {"bytes", ByteList(bytes)}});
    }
    const std::string bytes = Tell(tokenizer, token.id, told);
    content.push_back({{"token", LossyUtf8(bytes)},
                       {"logprob", token.logprob},
                       {"bytes", ByteList(bytes)},
                       {"top_logprobs", std::move(top)}});
  }
  return {{"content", std::move(content)}};
}

}  // namespace sage::server
