// Checks a safetensors header completely before a single tensor is handed out.
#include "engine/tensor/safetensors_file.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxShapeSizes = 16;

}  // namespace

class SafetensorsParser {
 public:
  SafetensorsParser(const uint8_t* data, size_t size, const std::string& name)
      : data_(data), size_(size), name_(name) {}

  absl::StatusOr<std::shared_ptr<SafetensorsFile>> Parse() {
    if (size_ < 8) return Bad("must be at least 8 bytes long, got ", size_);
    uint64_t header_size = 0;
    std::memcpy(&header_size, data_, 8);
    if (header_size > kMaxHeaderBytes)
      return Bad("header must be at most ", kMaxHeaderBytes, " bytes, got ", header_size);
    if (header_size > size_ - 8)
      return Bad("header of ", header_size, " bytes passes the end of the file (", size_, " bytes)");
    const std::string_view text(reinterpret_cast<const char*>(data_) + 8, static_cast<size_t>(header_size));
    if (text.empty() || text[0] != '{') return Bad("header must begin with '{'");
    SAGE_ASSIGN_OR_RETURN(
        const Json header,
        ParseJson(text, name_, {.max_bytes = kMaxHeaderBytes, .max_depth = 8, .reject_duplicate_keys = true}));
    begin_ = 8 + static_cast<size_t>(header_size);
    out_.reset(new SafetensorsFile());
    for (const auto& [key, value] : header.items()) {
      SAGE_RETURN_IF_ERROR(key == "__metadata__" ? ReadMetadata(value) : ReadTensor(key, value));
    }
    SAGE_RETURN_IF_ERROR(CheckCoverage());
    return std::move(out_);
  }

 private:
  template <typename... Parts>
  absl::Status Bad(const Parts&... parts) const {
    return MakeError(absl::StatusCode::kInvalidArgument, "SAFETENSORS_INVALID", absl::StrCat(name_, ": ", parts...));
  }

  absl::Status ReadMetadata(const Json& value) {
    if (!value.is_object()) return Bad("__metadata__ must be an object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) return Bad("__metadata__ must hold strings, '", key.substr(0, 80), "' does not");
      out_->metadata_[key] = text.get<std::string>();
    }
    return absl::OkStatus();
  }

  absl::Status ReadShape(const std::string& tensor, const Json& value, Shape* shape) const {
    const auto it = value.find("shape");
    if (it == value.end() || !it->is_array() || it->size() > kMaxShapeSizes) {
      return Bad("tensor '", tensor, "': shape must be an array of at most ", kMaxShapeSizes, " sizes");
    }
    for (const Json& d : *it) {
      if (!d.is_number_unsigned() || d.get<uint64_t>() > (uint64_t{1} << 48)) {
        return Bad("tensor '", tensor, "': shape must hold sizes in [0, 2^48], got ", DumpJson(d).substr(0, 40));
      }
      shape->push_back(static_cast<int64_t>(d.get<uint64_t>()));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTensor(const std::string& key, const Json& value) {
    const std::string tensor = key.substr(0, 200);
    if (!value.is_object()) return Bad("tensor '", tensor, "' must be an object");
    const auto dtype_name = value.find("dtype");
    if (dtype_name == value.end() || !dtype_name->is_string())
      return Bad("tensor '", tensor, "': dtype must be a string");
    const auto dtype = ParseDType(dtype_name->get<std::string>());
    if (!dtype)
      return Bad("tensor '", tensor, "': dtype is not known, got '", dtype_name->get<std::string>().substr(0, 40), "'");
    TensorView view;
    view.dtype = *dtype;
    SAGE_RETURN_IF_ERROR(ReadShape(tensor, value, &view.shape));
    const auto offsets = value.find("data_offsets");
    if (offsets == value.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
        !(*offsets)[1].is_number_unsigned()) {
      return Bad("tensor '", tensor, "': data_offsets must be two sizes");
    }
    const uint64_t from = (*offsets)[0].get<uint64_t>(), to = (*offsets)[1].get<uint64_t>();
    if (from > to || to > size_ - begin_) {
      return Bad("tensor '", tensor, "': data_offsets [", from, ", ", to, "] must lie within the data of ",
                 size_ - begin_, " bytes");
    }
    const auto count = ElementCount(view.shape);
    uint64_t bytes = 0;
    if (!count.ok() || __builtin_mul_overflow(static_cast<uint64_t>(*count), DTypeSize(*dtype), &bytes) ||
        bytes != to - from) {
      return Bad("tensor '", tensor, "': ", std::string(DTypeName(*dtype)), " ", ShapeText(view.shape),
                 " does not fill data_offsets [", from, ", ", to, "]");
    }
    view.data = data_ + begin_ + from;
    view.bytes = static_cast<size_t>(bytes);
    spans_.push_back({from, to, tensor});
    out_->tensors_.emplace(key, std::move(view));
    return absl::OkStatus();
  }

  absl::Status CheckCoverage() {
    std::sort(spans_.begin(), spans_.end(),
              [](const Span& a, const Span& b) { return std::tie(a.from, a.to) < std::tie(b.from, b.to); });
    uint64_t at = 0;
    for (const Span& span : spans_) {
      if (span.from < at) return Bad("tensor '", span.name, "' overlaps the one before it");
      if (span.from > at) return Bad("there is a hole before tensor '", span.name, "'");
      at = span.to;
    }
    if (at != size_ - begin_) return Bad("the tensors cover ", at, " of ", size_ - begin_, " data bytes");
    return absl::OkStatus();
  }

  struct Span {
    uint64_t from, to;
    std::string name;
  };
  const uint8_t* data_;
  size_t size_;
  std::string name_;
  size_t begin_ = 0;
  std::vector<Span> spans_;
  std::shared_ptr<SafetensorsFile> out_;
};

absl::StatusOr<std::shared_ptr<SafetensorsFile>> SafetensorsFile::Parse(const uint8_t* data, size_t size,
                                                                        const std::string& name) {
  return SafetensorsParser(data, size, name).Parse();
}

absl::StatusOr<std::shared_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<SafetensorsFile> out, Parse(file->data(), file->size(), path));
  out->file_ = std::move(file);
  return out;
}

}  // namespace sage
