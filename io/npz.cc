// SPDX-License-Identifier: Apache-2.0
#include "io/npz.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "io/byte_reader.h"
#include "io/limits.h"
#include "io/mapped_file.h"
#include "io/tensor_entry.h"
#include "io/text.h"
#include "io/zip_directory.h"

namespace scgraft {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);

// Without the order of bytes in front, as a header spells it.
struct FileType {
  const char* name;
  DType dtype;
};
constexpr FileType kFileTypes[] = {{"f4", DType::f32}, {"f8", DType::f64}, {"f2", DType::f16},
                                   {"i8", DType::i64}, {"i4", DType::i32}, {"i2", DType::i16},
                                   {"i1", DType::i8},  {"u1", DType::u8},  {"b1", DType::boolean}};

struct Header {
  std::string descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;
};

// One .npy file. Its header is the text of a Python dict of a string, a bool and a tuple of
// integers; nothing beyond these is understood.
class NpyReader {
 public:
  // array  its name for messages; empty when the file is the array
  NpyReader(const std::string& file, const std::string& array) : file_(file), array_(array) {}

  Tensor read(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) {
    ByteReader reader(bytes, FileKind::data, file_, "a NumPy array");
    if (bytes.size() < 10 || reader.text(6) != kMagic) fail("is no array: it does not begin so");
    const int major = reader.number<uint8_t>();
    reader.number<uint8_t>();
    if (major < 1 || major > 3) fail(cat("has header version ", major, ", 1 to 3 can be read"));
    const uint64_t length = major == 1 ? reader.number<uint16_t>() : reader.number<uint32_t>();
    text_ = reader.text(length);
    at_ = 0;
    const Header header = dict();
    const DType dtype = type(header.descr);
    const Shape shape = checked_shape(*header.shape, dtype, reader.left());
    const auto elements = reader.take(reader.left());
    if (dtype == DType::boolean)
      for (const std::byte b : elements)
        if (static_cast<uint8_t>(b) > 1) fail("has a bool that is neither 0 nor 1");
    if (elements.empty()) return Tensor(shape, dtype);
    if (*header.fortran_order && shape.rank() > 1) return transposed(elements, shape, dtype);
    return tensor_over(std::move(owner), elements, shape, dtype);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw_file_error(FileKind::data, file_,
                     array_.empty() ? message : cat("array \"", escaped(array_), "\" ", message),
                     "E-NPY", "write it with numpy.save or numpy.savez, as numbers",
                     escaped(array_));
  }
  [[noreturn]] void fail_header() const {
    fail(cat("has a header that cannot be read at character ", at_, ": ", escaped(text_)));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_spaces() {
    while (peek() == ' ' || peek() == '\n') ++at_;
  }
  bool accept(std::string_view word) {
    skip_spaces();
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }
  void expect(std::string_view word) {
    if (!accept(word)) fail_header();
  }

  std::string quoted() {
    skip_spaces();
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail_header();
    const size_t end = text_.find(quote, ++at_);
    if (end == std::string_view::npos) fail_header();
    const std::string value(text_.substr(at_, end - at_));
    at_ = end + 1;
    return value;
  }

  int64_t integer() {
    skip_spaces();
    if (peek() < '0' || peek() > '9') fail_header();
    int64_t value = 0;
    for (; peek() >= '0' && peek() <= '9'; ++at_)
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, peek() - '0', &value))
        fail_header();
    accept("L");  // Python 2
    return value;
  }

  std::vector<int64_t> tuple() {
    std::vector<int64_t> values;
    expect("(");
    while (!accept(")")) {
      values.push_back(integer());
      if (values.size() > 64) fail_header();
      if (!accept(",")) {
        expect(")");
        if (values.size() == 1) fail_header();  // "(3)" is a number
        break;
      }
    }
    return values;
  }

  Header dict() {
    Header header;
    expect("{");
    while (!accept("}")) {
      const std::string key = quoted();
      expect(":");
      if (key == "descr" && header.descr.empty()) {
        skip_spaces();
        if (peek() == '[') fail("is a table of several columns, one of numbers is needed");
        header.descr = quoted();
      } else if (key == "fortran_order" && !header.fortran_order) {
        header.fortran_order = accept("True");
        if (!*header.fortran_order) expect("False");
      } else if (key == "shape" && !header.shape) {
        header.shape = tuple();
      } else {
        fail_header();
      }
      if (!accept(",")) {
        expect("}");
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size() || header.descr.empty() || !header.fortran_order || !header.shape)
      fail_header();
    return header;
  }

  DType type(const std::string& descr) const {
    const std::string name = descr.substr(1);
    const auto* known = std::find_if(std::begin(kFileTypes), std::end(kFileTypes),
                                     [&](const FileType& t) { return name == t.name; });
    if (known == std::end(kFileTypes))
      fail(cat("has elements of type \"", escaped(descr),
               "\"; f8, f4, f2, i8, i4, i2, i1, u1 and b1 can be read"));
    if (size_of(known->dtype) > 1 && descr[0] != '<' && descr[0] != '=')
      fail(cat("is big-endian (\"", escaped(descr), "\"), little-endian is needed"));
    return known->dtype;
  }

  Shape checked_shape(const std::vector<int64_t>& dims, DType dtype, size_t nbytes) const {
    if (dims.size() > static_cast<size_t>(Shape::kMaxRank))
      fail(cat("has ", dims.size(), " dimensions, at most ", Shape::kMaxRank, " can be read"));
    int64_t wanted = size_of(dtype);
    bool fits = true;
    for (int64_t d : dims) fits = !__builtin_mul_overflow(wanted, d, &wanted) && fits;
    const TensorInfo info{array_, name_of(dtype).data(), dtype, dims};
    if (!fits || static_cast<uint64_t>(wanted) != nbytes)
      fail(cat("of shape ", info.dims_text(), " and type ", dtype, " needs ",
               fits ? cat(wanted) : "too many", " bytes, ", nbytes, " are there"));
    return Shape(std::span<const int64_t>(dims));
  }

  // Column-major elements, first index fastest, as a row-major tensor.
  static Tensor transposed(std::span<const std::byte> elements, const Shape& shape, DType dtype) {
    Tensor out(shape, dtype);
    const auto size = static_cast<size_t>(size_of(dtype));
    auto* to = static_cast<std::byte*>(out.view().data());
    std::array<int64_t, Shape::kMaxRank> index{};
    for (int64_t n = 0; n < shape.numel(); ++n) {
      int64_t from = 0;
      for (int axis = shape.rank(); axis-- > 0;)
        from = from * shape[axis] + index[static_cast<size_t>(axis)];
      std::memcpy(to + static_cast<size_t>(n) * size,
                  elements.data() + static_cast<size_t>(from) * size, size);
      for (int axis = shape.rank(); axis-- > 0;) {
        if (++index[static_cast<size_t>(axis)] < shape[axis]) break;
        index[static_cast<size_t>(axis)] = 0;
      }
    }
    return out;
  }

  const std::string& file_;
  const std::string& array_;
  std::string_view text_;
  size_t at_ = 0;
};

std::string npy_header(const Shape& shape, DType dtype) {
  const auto* type = std::find_if(std::begin(kFileTypes), std::end(kFileTypes),
                                  [&](const FileType& t) { return t.dtype == dtype; });
  std::string text = cat("{'descr': '", size_of(dtype) == 1 ? '|' : '<', type->name,
                         "', 'fortran_order': False, 'shape': (");
  for (int i = 0; i < shape.rank(); ++i) text += cat(i ? ", " : "", shape[i]);
  text += shape.rank() == 1 ? ",), }" : "), }";
  constexpr size_t kStart = 10;
  text.append(63 - (kStart + text.size()) % 64, ' ');
  text += '\n';
  const auto length = static_cast<uint16_t>(text.size());
  std::string out(kMagic);
  out += {'\x01', '\x00', static_cast<char>(length & 0xff), static_cast<char>(length >> 8)};
  return out + text;
}

// Little-endian numbers of a zip record behind each other.
class Record {
 public:
  template <class... T>
  explicit Record(uint32_t signature, T... numbers) {
    add(signature);
    (add(numbers), ...);
  }
  template <class T>
  void add(T number) {
    text_.append(reinterpret_cast<const char*>(&number), sizeof(T));
  }
  void add(const std::string& text) { text_ += text; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// Writes a zip archive of stored entries. Every size is written in its zip64 form, whatever it is:
// one path, which every archive of a test goes through.
// Source: PKWARE .ZIP File Format Specification 6.3, sections 4.3 and 4.5.3.
class ZipWriter {
 public:
  ZipWriter(const std::string& path, Overwrite overwrite) : out_(path, overwrite) {}

  // The content is `head` and then `body`.
  void add(const std::string& name, const std::string& head, std::span<const std::byte> body) {
    uLong crc = crc32_z(0, reinterpret_cast<const Bytef*>(head.data()), head.size());
    if (!body.empty()) crc = crc32_z(crc, reinterpret_cast<const Bytef*>(body.data()), body.size());
    const auto size = static_cast<uint64_t>(head.size() + body.size());
    const auto name_size = static_cast<uint16_t>(name.size());
    constexpr uint16_t kStored = 0, kTime = 0, kFirstOfJanuary1980 = 0x21;

    Record extra(0x100001, size, size);  // field 1, 16 bytes
    Record local(0x04034b50, kVersion, kUtf8Names, kStored, kTime, kFirstOfJanuary1980,
                 static_cast<uint32_t>(crc), kInZip64, kInZip64, name_size, uint16_t{20});
    local.add(name);
    local.add(extra.text());

    Record more(0x180001, size, size, offset_);  // field 1, 24 bytes
    Record entry(0x02014b50, kVersion, kVersion, kUtf8Names, kStored, kTime, kFirstOfJanuary1980,
                 static_cast<uint32_t>(crc), kInZip64, kInZip64, name_size, uint16_t{28},
                 uint16_t{0}, uint16_t{0}, uint16_t{0}, uint32_t{0}, kInZip64);
    entry.add(name);
    entry.add(more.text());

    directory_ += entry.text();
    ++count_;
    for (const std::string* part : {&local.text(), &head}) {
      out_.write(*part);
      offset_ += part->size();
    }
    out_.write(body);
    offset_ += body.size();
  }

  void commit() {
    const auto size = static_cast<uint64_t>(directory_.size());
    out_.write(directory_);
    out_.write(Record(0x06064b50, uint64_t{44}, kVersion, kVersion, uint32_t{0}, uint32_t{0},
                      count_, count_, size, offset_)
                   .text());
    out_.write(Record(0x07064b50, uint32_t{0}, offset_ + size, uint32_t{1}).text());
    out_.write(Record(0x06054b50, uint16_t{0}, uint16_t{0}, uint16_t{0xffff}, uint16_t{0xffff},
                      kInZip64, kInZip64, uint16_t{0})
                   .text());
    out_.commit();
  }

 private:
  static constexpr uint16_t kVersion = 45;  // the first with zip64
  static constexpr uint16_t kUtf8Names = 0x800;
  static constexpr uint32_t kInZip64 = 0xffffffffu;

  OutputFile out_;
  std::string directory_;
  uint64_t offset_ = 0;
  uint64_t count_ = 0;
};

}  // namespace

std::map<std::string, Tensor> read_npz(const std::string& path) {
  constexpr std::string_view kSuffix = ".npy";
  const auto file = MappedFile::open(path, FileKind::data);
  const ZipDirectory zip = ZipDirectory::parse(file->bytes(), FileKind::data, path);
  std::map<std::string, Tensor> arrays;
  int64_t budget = limits::kHostBudgetBytes;
  for (const auto& [entry_name, entry] : zip.entries()) {
    if (!entry_name.ends_with(kSuffix))
      throw_file_error(FileKind::data, path,
                       cat("entry \"", escaped(entry_name), "\" is no array: .npy is missing"),
                       "E-NPY", "write it with numpy.savez", escaped(entry_name));
    const std::string name = entry_name.substr(0, entry_name.size() - kSuffix.size());
    const ZipContent content =
        zip.read(entry, entry.method == 0 ? std::numeric_limits<int64_t>::max() : budget);
    std::shared_ptr<const void> owner = file;
    if (content.unpacked) {
      budget -= entry.size;
      owner = content.unpacked;
    }
    arrays.emplace(name, NpyReader(path, name).read(content.bytes, std::move(owner)));
  }
  return arrays;
}

Tensor read_npy(const std::string& path) {
  const auto file = MappedFile::open(path, FileKind::data);
  return NpyReader(path, {}).read(file->bytes(), file);
}

void write_npz(const std::string& path, const std::map<std::string, ConstTensorView>& arrays,
               Overwrite overwrite) {
  ZipWriter zip(path, overwrite);
  for (const auto& [name, array] : arrays) {
    require(!name.empty() && name.size() < 60'000 && is_utf8(name), "npz: \"", escaped(name),
            "\" cannot be the name of an array");
    require<TypeError>(!array.device().is_cuda(), "npz: ", escaped(name), " is not on the CPU");
    Tensor widened;
    ConstTensorView view = array;
    if (view.dtype() == DType::bf16) {
      Tensor copy(view.shape(), DType::f32);
      const bf16* from = view.as<bf16>();
      std::transform(from, from + view.numel(), copy.as<float>(),
                     [](bf16 value) { return static_cast<float>(value); });
      widened = std::move(copy);
      view = std::as_const(widened).view();
    }
    zip.add(name + ".npy", npy_header(view.shape(), view.dtype()),
            {static_cast<const std::byte*>(view.data()), static_cast<size_t>(view.nbytes())});
  }
  zip.commit();
}

}  // namespace scgraft
