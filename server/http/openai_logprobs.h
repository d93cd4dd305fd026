// Log-probabilities as OpenAI's clients read them: token texts that join to the answer's text, raw bytes, and offsets
// in characters.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/api/engine.h"
#include "engine/base/json.h"

namespace sage::server {

// How far the text of one choice has come; the same object for all of its events.
struct ToldText {
  bool begun = false;         // something stands before the next token: a space it begins with is kept
  int64_t characters = 0;     // of the tokens told so far
  bool skips_special = true;  // special tokens are named, but are no part of the text
};

// {tokens, token_logprobs, top_logprobs, text_offset} of /v1/completions. `no_first`: the first of the tokens has no
// logprob, because nothing stands before it. Without a tokenizer a token is called token_id:ID. Alternatives of one
// position whose texts are equal (bytes that are no characters alone) are told apart as token_id:ID.
Json CompletionLogprobs(const Tokenizer* tokenizer, const std::vector<TokenRecord>& tokens, bool no_first,
                        ToldText& told);
// {content: [{token, logprob, bytes, top_logprobs}]} of /v1/chat/completions.
Json ChatLogprobs(const Tokenizer* tokenizer, const std::vector<TokenRecord>& tokens, ToldText& told);

}  // namespace sage::server
