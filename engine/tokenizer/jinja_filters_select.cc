// Filters that apply another filter or a test to each item.
#include "absl/strings/str_cat.h"
#include "engine/tokenizer/jinja_filters.h"

namespace sage::jinja {
namespace {

bool MapFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Interpreter::Depth depth(&in);  // map('map', 'map', ...) nests without nested nodes
  if (!depth.ok()) return false;
  Value list;
  if (!Iterate(in, v, &list)) return false;
  std::vector<Value> items(list.items().size());
  if (args.list.empty()) {
    const Value* bound[2];
    if (args.keywords.empty()) return in.Fail("map requires a filter argument");
    if (!in.Bind("map", args, {"attribute", "default"}, 1, bound)) return false;
    const Value* fallback = bound[1] != nullptr && !bound[1]->is_none() ? bound[1] : nullptr;
    for (size_t i = 0; i < items.size(); ++i) {
      if (!in.Step() || !GetPath(in, list.items()[i], bound[0], fallback, &items[i])) return false;
    }
    return in.List(std::move(items), out, Type::kGenerator);
  }
  if (!args.list[0].is_string()) return in.Fail("map needs the name of a filter");
  const FilterFn filter = FindFilter(args.list[0].s());
  if (filter == nullptr) return in.Fail(absl::StrCat("no filter named '", args.list[0].s(), "'"));
  for (size_t i = 0; i < items.size(); ++i) {
    Args rest;
    rest.list.assign(args.list.begin() + 1, args.list.end());
    rest.keywords = args.keywords;
    if (!in.Step(1 + static_cast<int64_t>(rest.list.size())) || !filter(in, list.items()[i], rest, &items[i])) {
      return false;
    }
  }
  return in.List(std::move(items), out, Type::kGenerator);
}

template <bool kKeep, bool kAttribute>
bool SelectFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  Value list;
  if (!Iterate(in, v, &list)) return false;
  const size_t skip = kAttribute ? 1 : 0;
  if (args.list.size() < skip) return in.Fail("Missing parameter for attribute name");
  TestFn test = nullptr;
  if (args.list.size() > skip) {
    const Value& name = args.list[skip];
    test = name.is_string() ? FindTest(name.s()) : nullptr;
    if (test == nullptr) return in.Fail("no such test");
  }
  std::vector<Value> items;
  for (const Value& item : list.items()) {
    Value subject;
    if (!in.Step() || !GetPath(in, item, kAttribute ? &args.list[0] : nullptr, nullptr, &subject)) return false;
    bool holds = false;
    if (test == nullptr) {
      holds = Truthy(subject);
    } else {
      Args rest;
      rest.list.assign(args.list.begin() + static_cast<int64_t>(skip) + 1, args.list.end());
      rest.keywords = args.keywords;
      if (!in.Step(static_cast<int64_t>(rest.list.size())) || !test(in, subject, rest, &holds)) return false;
    }
    if (holds == kKeep) items.push_back(item);
  }
  return in.List(std::move(items), out, Type::kGenerator);
}

// A method or other real attribute; unlike `.`, never a dict's entry.
bool AttrFilter(Interpreter& in, const Value& v, Args& args, Value* out) {
  const Value* bound[1];
  Value name;
  if (!in.Bind("attr", args, {"name"}, 1, bound) || !ToText(in, *bound[0], &name)) return false;
  if (v.Is(Type::kDict) && FindMethod(Type::kDict, name.s()) < 0) {
    *out = Value::Undefined(static_cast<StrObj*>(name.obj()), Type::kDict);
    return true;
  }
  return in.Attribute(v, name, out);
}

constexpr FilterRow kSelectFilters[] = {
    {"map", MapFilter},
    {"select", SelectFilter<true, false>},
    {"reject", SelectFilter<false, false>},
    {"selectattr", SelectFilter<true, true>},
    {"rejectattr", SelectFilter<false, true>},
    {"attr", AttrFilter},
};

}  // namespace

absl::Span<const FilterRow> SelectFilters() { return kSelectFilters; }

}  // namespace sage::jinja
