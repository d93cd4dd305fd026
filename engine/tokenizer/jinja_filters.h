// The filters, in tables by theme; FindFilter looks through all of them.
#pragma once

#include <string_view>

#include "absl/types/span.h"
#include "engine/tokenizer/jinja_interpreter.h"

namespace sage::jinja {

struct FilterRow {
  const char* name;
  FilterFn filter;
};

absl::Span<const FilterRow> TextFilters();
absl::Span<const FilterRow> NumberFilters();
absl::Span<const FilterRow> ListFilters();
absl::Span<const FilterRow> SelectFilters();

// "a.b.0" (or an index) looked up in a value; `fallback` stands in for what is undefined. Null path: the value itself.
bool GetPath(Interpreter& in, const Value& v, const Value* path, const Value* fallback, Value* out);
// Lower case for texts, everything else as it is: what sorting and grouping compare.
bool FoldCase(Interpreter& in, Value* v);
bool BindBool(const Value* arg, bool fallback);

}  // namespace sage::jinja
