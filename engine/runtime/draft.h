// Draft ids for speculative decoding, looked up in the sequence itself: what followed its last few ids before.
//
// Text repeats itself (code, quotations, tables, answers over a given document). The engine computes the drafted rows
// beside the one it has to compute and samples each row as if the drafts before it were right; ids up to the first
// that differs from its draft are kept. A draw depends on (seed, choice, position) alone and a row's bits on no batch,
// so the text is the one without drafts. Source: prompt lookup decoding.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace sage {

// At most `count` ids that followed the latest earlier occurrence of the last three ids, or else of the last two; empty
// without one.
std::vector<int32_t> DraftFromNgrams(absl::Span<const int32_t> ids, int64_t count);

// How many ids to draft next, given that `accepted` of `drafted` were right: a little more than was right.
int64_t NextDraftLength(int64_t drafted, int64_t accepted);

inline constexpr int64_t kFirstDraftLength = 3;
inline constexpr int64_t kMaxDraftLength = 8;
inline constexpr int64_t kMaxDraftedRows = 16;  // of a step: beyond, rows cost what tokens cost

}  // namespace sage
