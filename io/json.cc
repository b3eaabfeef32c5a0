// SPDX-License-Identifier: Apache-2.0
#include "io/json.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>
#include <vector>

#include "io/mapped_file.h"
#include "io/text.h"
#include "runtime/cat.h"

namespace scgraft {
namespace {

using nlohmann::json;

// Watches the parser: depth of nesting and keys of the objects that are open.
class Watch {
 public:
  Watch(const std::string& file, FileKind kind, int64_t depth)
      : file_(file), kind_(kind), depth_(depth) {}

  bool operator()(int, json::parse_event_t event, const json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        keys_.emplace_back();
        if (static_cast<int64_t>(keys_.size()) > depth_)
          throw_file_error(kind_, file_, cat("the JSON text nests deeper than ", depth_, " levels"),
                           "E-LIMIT");
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        keys_.pop_back();
        break;
      case json::parse_event_t::key:
        check(parsed.get_ref<const std::string&>());
        break;
      default:
        break;
    }
    return true;
  }

 private:
  void check(const std::string& key) {
    if (keys_.back().insert(key).second) return;
    throw_file_error(kind_, file_, cat("the JSON text has the key \"", escaped(key), "\" twice"),
                     "E-JSON-DUPLICATE", "keep one of the two entries", escaped(key));
  }

  const std::string& file_;
  FileKind kind_;
  int64_t depth_;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

json parse_json(std::span<const std::byte> bytes, const std::string& file, FileKind kind,
                JsonLimits limits) {
  if (static_cast<int64_t>(bytes.size()) > limits.bytes)
    throw_file_error(kind, file,
                     cat("the JSON text has ", bytes.size(), " bytes, the limit is ", limits.bytes),
                     "E-LIMIT");
  const char* begin = reinterpret_cast<const char*>(bytes.data());
  // The parser takes a zero byte for the end of the text and would not see what follows.
  if (const char* zero = std::find(begin, begin + bytes.size(), '\0'); zero != begin + bytes.size())
    throw_file_error(
        kind, file,
        cat("is not valid JSON at byte ", zero - begin + 1, " of ", bytes.size(), ": a zero byte"),
        "E-JSON", "the file may be damaged or cut; fetch it again");
  Watch watch(file, kind, limits.depth);
  try {
    return json::parse(begin, begin + bytes.size(), std::ref(watch));
  } catch (const json::parse_error& error) {
    throw_file_error(kind, file,
                     cat("is not valid JSON at byte ", error.byte, " of ", bytes.size(), ": ",
                         escaped(error.what())),
                     "E-JSON", "the file may be damaged or cut; fetch it again");
  } catch (const json::exception& error) {
    throw_file_error(kind, file, cat("is not valid JSON: ", escaped(error.what())), "E-JSON");
  }
}

json read_json(const std::string& path, FileKind kind, JsonLimits limits) {
  return parse_json(MappedFile::open(path, kind)->bytes(), path, kind, limits);
}

std::string json_text(const json& value) {
  return value.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

void set_number(json& object, const std::string& name, double value) {
  if (std::isfinite(value)) {
    object[name] = value;
    return;
  }
  object[name] = nullptr;
  object[name + "_nonfinite"] = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

json with_finite_numbers(const json& value) {
  if (value.is_number_float() && !std::isfinite(value.get<double>())) return nullptr;
  if (!value.is_structured()) return value;
  json out = value.is_array() ? json::array() : json::object();
  if (value.is_array())
    for (const json& item : value) out.push_back(with_finite_numbers(item));
  else
    for (const auto& [name, item] : value.items())
      if (item.is_number_float())
        set_number(out, name, item.get<double>());
      else
        out[name] = with_finite_numbers(item);
  return out;
}

void write_json(const std::string& path, const json& value, Overwrite overwrite) {
  write_file(path, json_text(value), overwrite);
}

}  // namespace scgraft
