// Filters over sequences and mappings: order, grouping, joining, cutting.
#include <algorithm>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_filters.h"
#include "engine/tokenizer/jinja_text.h"

namespace sage::jinja {
namespace {

bool UndefinedBecause(Interpreter& in, const char* why, Value* out) {
  Value message;
  if (!in.Text(why, &message)) return false;
  *out = Value::Undefined(static_cast<StrObj*>(message.obj()), Type::kAbsent);
  return true;
}

bool LengthFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  int64_t length = 0;
  if (!in.Bind("length", args, {}, 0, nullptr) || !Length(in, v, &length)) return false;
  *out = Value::Int(length);
  return true;
}

bool ListFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value list;
  return in.Bind("list", args, {}, 0, nullptr) && Iterate(in, v, &list) && in.List(list.items(), out);
}

bool FirstFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value list;
  if (!in.Bind("first", args, {}, 0, nullptr)) return false;
  if (v.is_string() && !v.s().empty()) return in.Item(v, Value::Int(0), out);
  if (!Iterate(in, v, &list)) return false;
  if (list.items().empty()) return UndefinedBecause(in, "No first item, sequence was empty.", out);
  *out = list.items().front();
  return true;
}

bool LastFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value list;
  if (!in.Bind("last", args, {}, 0, nullptr)) return false;
  if (v.Is(Type::kGenerator)) return in.Fail("'generator' object is not reversible");
  if (v.is_string() && !v.s().empty()) return in.Item(v, Value::Int(-1), out);
  if (!Iterate(in, v, &list)) return false;
  if (list.items().empty()) return UndefinedBecause(in, "No last item, sequence was empty.", out);
  *out = list.items().back();
  return true;
}

bool ReverseFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value list;
  if (!in.Bind("reverse", args, {}, 0, nullptr) || !Iterate(in, v, &list)) return false;
  std::vector<Value> items(list.items().rbegin(), list.items().rend());
  if (!v.is_string()) return in.List(std::move(items), out, v.Is(Type::kGenerator) ? Type::kList : Type::kGenerator);
  std::string text;
  for (const Value& item : items) text += item.s();
  return in.Text(std::move(text), out);
}

bool JoinFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  Value list;
  Value between;
  if (!in.Bind("join", args, {"d", "attribute"}, 0, bound) || !Iterate(in, v, &list)) return false;
  if (bound[0] == nullptr ? !in.Text("", &between) : !ToText(in, *bound[0], &between)) return false;
  const Value* path = bound[1] != nullptr && !bound[1]->is_none() ? bound[1] : nullptr;
  std::string text;
  bool first = true;
  for (const Value& item : list.items()) {
    Value part;
    if (!in.Step() || !GetPath(in, item, path, nullptr, &part)) return false;
    if (!first && !AppendStr(in, between, &text)) return false;
    first = false;
    if (!AppendStr(in, part, &text)) return false;
  }
  return in.Text(std::move(text), out);
}

struct Keyed {
  Value key;
  Value item;
};

// Sorts by the keys, keeping the order of equals also when reversed, as Python does.
bool SortKeyed(Interpreter& in, std::vector<Keyed>* rows, bool reverse) {
  std::stable_sort(rows->begin(), rows->end(), [&](const Keyed& a, const Keyed& b) {
    bool less = false;
    if (in.failed() || !in.Step()) return false;
    return (reverse ? Less(in, b.key, a.key, &less) : Less(in, a.key, b.key, &less)) && less;
  });
  return !in.failed();
}

// "a,b" sorts by a, then by b.
bool SortKey(Interpreter& in, const Value& item, const Value* attribute, bool case_sensitive, Value* out) {
  if (attribute == nullptr || !attribute->is_string() || attribute->s().find(',') == std::string::npos) {
    return GetPath(in, item, attribute, nullptr, out) && (case_sensitive || FoldCase(in, out));
  }
  std::vector<Value> parts;
  for (const std::string_view name : SplitText(attribute->s(), ",", 100, false)) {
    Value path;
    Value part;
    if (!in.Text(std::string(name), &path) || !GetPath(in, item, &path, nullptr, &part)) return false;
    if (!case_sensitive && !FoldCase(in, &part)) return false;
    parts.push_back(std::move(part));
  }
  return in.List(std::move(parts), out);
}

bool TakeItems(Interpreter& in, std::vector<Keyed> rows, Value* out) {
  std::vector<Value> items;
  items.reserve(rows.size());
  for (Keyed& row : rows) items.push_back(std::move(row.item));
  return in.List(std::move(items), out);
}

bool SortFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[3];
  Value list;
  if (!in.Bind("sort", args, {"reverse", "case_sensitive", "attribute"}, 0, bound) || !Iterate(in, v, &list)) {
    return false;
  }
  std::vector<Keyed> rows(list.items().size());
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].item = list.items()[i];
    if (!in.Step() || !SortKey(in, rows[i].item, bound[2], BindBool(bound[1], false), &rows[i].key)) return false;
  }
  return SortKeyed(in, &rows, BindBool(bound[0], false)) && TakeItems(in, std::move(rows), out);
}

bool DictSortFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[3];
  Value list;
  std::string_view by = "key";
  if (!in.Bind("dictsort", args, {"case_sensitive", "by", "reverse"}, 0, bound)) return false;
  if (!v.Is(Type::kDict)) return v.is_undefined() ? FailUndefined(in, v) : in.Fail("dictsort needs a mapping");
  if (bound[1] != nullptr && !in.BindText("dictsort", bound[1], &by)) return false;
  if (by != "key" && by != "value") return in.Fail("You can only sort by either \"key\" or \"value\"");
  if (!DictView(in, v, Type::kItems, &list)) return false;
  std::vector<Keyed> rows(list.items().size());
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].item = list.items()[i];
    rows[i].key = rows[i].item.items()[by == "key" ? 0 : 1];
    if (!BindBool(bound[0], false) && !FoldCase(in, &rows[i].key)) return false;
  }
  return SortKeyed(in, &rows, BindBool(bound[2], false)) && TakeItems(in, std::move(rows), out);
}

template <bool kMax>
bool ExtremeFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  Value list;
  if (!in.Bind(kMax ? "max" : "min", args, {"case_sensitive", "attribute"}, 0, bound) || !Iterate(in, v, &list)) {
    return false;
  }
  if (list.items().empty()) return UndefinedBecause(in, "No aggregated item, sequence was empty.", out);
  Value best;
  for (const Value& item : list.items()) {
    Value key;
    bool better = true;
    if (!in.Step() || !GetPath(in, item, bound[1], nullptr, &key)) return false;
    if (!BindBool(bound[0], false) && !FoldCase(in, &key)) return false;
    if (best.present() && !(kMax ? Less(in, best, key, &better, ">") : Less(in, key, best, &better))) return false;
    if (!better) continue;
    best = std::move(key);
    *out = item;
  }
  return true;
}

bool SumFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  Value list;
  if (!in.Bind("sum", args, {"attribute", "start"}, 0, bound) || !Iterate(in, v, &list)) return false;
  Value total = bound[1] != nullptr ? *bound[1] : Value::Int(0);
  if (total.is_string()) return in.Fail("sum() can't sum strings");
  for (const Value& item : list.items()) {
    Value part;
    Value next;
    if (!in.Step() || !GetPath(in, item, bound[0], nullptr, &part) || !in.Binary(Op::kAdd, total, part, &next)) {
      return false;
    }
    total = std::move(next);
  }
  *out = std::move(total);
  return true;
}

bool UniqueFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  Value list;
  if (!in.Bind("unique", args, {"case_sensitive", "attribute"}, 0, bound) || !Iterate(in, v, &list)) return false;
  DictObj seen;
  std::vector<Value> items;
  for (const Value& item : list.items()) {
    Value key;
    if (!in.Step() || !GetPath(in, item, bound[1], nullptr, &key)) return false;
    if (!BindBool(bound[0], false) && !FoldCase(in, &key)) return false;
    if (!Hashable(key)) return in.Fail("unhashable value");
    if (!in.Step(Weight(key))) return false;
    if (seen.Find(key) != nullptr) continue;
    seen.Set(key, Value::None());
    items.push_back(item);
  }
  return in.List(std::move(items), out, Type::kGenerator);
}

bool GroupByFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[3];
  Value list;
  if (!in.Bind("groupby", args, {"attribute", "default", "case_sensitive"}, 1, bound) || !Iterate(in, v, &list)) {
    return false;
  }
  const Value* fallback = bound[1] != nullptr && !bound[1]->is_none() ? bound[1] : nullptr;
  const bool case_sensitive = BindBool(bound[2], false);
  std::vector<Keyed> rows(list.items().size());
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].item = list.items()[i];
    if (!in.Step() || !GetPath(in, rows[i].item, bound[0], fallback, &rows[i].key)) return false;
    if (!case_sensitive && !FoldCase(in, &rows[i].key)) return false;
  }
  if (!SortKeyed(in, &rows, false)) return false;
  std::vector<Value> groups;
  for (size_t begin = 0; begin < rows.size();) {
    size_t end = begin;
    std::vector<Value> members;
    if (!in.Step(Weight(rows[begin].key))) return false;
    while (end < rows.size() && Equals(rows[begin].key, rows[end].key)) members.push_back(rows[end++].item);
    if (end == begin) members.push_back(rows[end++].item);  // NaN equals nothing
    Value key;
    Value inside;
    Value group;
    // The key is shown as the first member has it.
    if (!GetPath(in, rows[begin].item, bound[0], fallback, &key)) return false;
    if (!in.List(std::move(members), &inside) || !in.List({key, inside}, &group, Type::kTuple)) return false;
    group.set_special(true);
    groups.push_back(std::move(group));
    begin = end;
  }
  return in.List(std::move(groups), out);
}

bool BatchFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  Value list;
  int64_t count = 0;
  if (!in.Bind("batch", args, {"linecount", "fill_with"}, 1, bound) || !in.BindInt(bound[0], 0, &count)) return false;
  if (!Iterate(in, v, &list)) return false;
  const auto& items = list.items();
  const size_t step = count <= 0 ? std::max<size_t>(items.size(), 1) : static_cast<size_t>(count);
  std::vector<Value> rows;
  for (size_t begin = 0; begin < items.size(); begin += std::min(step, items.size() - begin)) {
    const size_t end = begin + std::min(step, items.size() - begin);
    std::vector<Value> row(items.begin() + static_cast<int64_t>(begin), items.begin() + static_cast<int64_t>(end));
    if (bound[1] != nullptr && !bound[1]->is_none() && count > 0) {
      if (!in.CanItems(step) || !in.Step(static_cast<int64_t>(step))) return false;
      row.resize(step, *bound[1]);
    }
    rows.emplace_back();
    if (!in.List(std::move(row), &rows.back())) return false;
  }
  return in.List(std::move(rows), out, Type::kGenerator);
}

bool SliceFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[2];
  Value list;
  int64_t count = 0;
  if (!in.Bind("slice", args, {"slices", "fill_with"}, 1, bound) || !in.BindInt(bound[0], 0, &count)) return false;
  if (!Iterate(in, v, &list)) return false;
  if (count == 0) return in.Fail("integer division or modulo by zero");
  const auto& items = list.items();
  const size_t slices = count < 0 ? 0 : static_cast<size_t>(count);
  if (!in.CanItems(slices) || !in.Step(static_cast<int64_t>(slices))) return false;
  std::vector<Value> rows;
  size_t at = 0;
  for (size_t i = 0; i < slices; ++i) {
    const bool extra = i < items.size() % slices;
    const size_t size = items.size() / slices + (extra ? 1 : 0);
    std::vector<Value> row(items.begin() + static_cast<int64_t>(at), items.begin() + static_cast<int64_t>(at + size));
    at += size;
    if (bound[1] != nullptr && !bound[1]->is_none() && !extra) row.push_back(*bound[1]);
    rows.emplace_back();
    if (!in.List(std::move(row), &rows.back())) return false;
  }
  return in.List(std::move(rows), out, Type::kGenerator);
}

bool ItemsFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  if (!in.Bind("items", args, {}, 0, nullptr)) return false;
  if (v.is_undefined()) return in.List({}, out, Type::kGenerator);
  if (!v.Is(Type::kDict)) return in.Fail("Can only get item pairs from a mapping.");
  Value view;
  return DictView(in, v, Type::kItems, &view) && in.List(view.items(), out, Type::kGenerator);
}

constexpr FilterRow kListFilters[] = {
    {"length", LengthFilter},     {"count", LengthFilter},      {"list", ListFilter},          {"first", FirstFilter},
    {"last", LastFilter},         {"reverse", ReverseFilter},   {"join", JoinFilter},          {"sort", SortFilter},
    {"dictsort", DictSortFilter}, {"max", ExtremeFilter<true>}, {"min", ExtremeFilter<false>}, {"sum", SumFilter},
    {"unique", UniqueFilter},     {"groupby", GroupByFilter},   {"batch", BatchFilter},        {"slice", SliceFilter},
    {"items", ItemsFilter},
};

}  // namespace

absl::Span<const FilterRow> ListFilters() { return kListFilters; }

bool GetPath(Interpreter& in, const Value& v, const Value* path, const Value* fallback, Value* out) {
  *out = v;
  if (path == nullptr || path->is_none()) return true;
  if (!path->is_string()) return in.Item(v, *path, out);
  for (const std::string_view name : SplitText(path->s(), ".", 100, false)) {
    Value key;
    const bool number = !name.empty() && name.size() < 10 && name.find_first_not_of("0123456789") == name.npos;
    if (number) {
      key = Value::Int(std::stoi(std::string(name)));
    } else if (!in.Text(std::string(name), &key)) {
      return false;
    }
    const Value object = *out;
    if (!in.Item(object, key, out)) return false;
    if (fallback != nullptr && out->is_undefined()) *out = *fallback;
  }
  return true;
}

bool FoldCase(Interpreter& in, Value* v) {
  if (!v->is_string()) return true;
  return in.StepBytes(v->s().size() * 4) && in.Text(ConvertCase(v->s(), Case::kLower), v);
}

FilterFn FindFilter(const std::string& name) {
  static const std::unordered_map<std::string, FilterFn> kFilters = [] {
    std::unordered_map<std::string, FilterFn> table;
    for (const auto& rows : {TextFilters(), NumberFilters(), ListFilters(), SelectFilters()}) {
      for (const FilterRow& row : rows) table[row.name] = row.filter;
    }
    return table;
  }();
  const auto it = kFilters.find(name);
  return it == kFilters.end() ? nullptr : it->second;
}

}  // namespace sage::jinja
