// SPDX-License-Identifier: Apache-2.0
#include "io/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "io/byte_reader.h"
#include "io/limits.h"
#include "io/pickle_globals.h"
#include "io/text.h"

namespace scgraft {
namespace {

// Opcodes by their names in Python's pickletools.
enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersid = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyTuple = ')',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

constexpr PickleId kMarkId = -1;     // on the stack
constexpr PickleId kNotInMemo = -1;  // in the memo

}  // namespace

// The stack machine. Objects are nodes of the result; the stack and the memo hold their numbers.
class PickleMachine {
 public:
  PickleMachine(std::span<const std::byte> bytes, FileKind kind, const std::string& file)
      : reader_(bytes, kind, file, "the pickle"), kind_(kind), file_(file) {}

  Pickle run() {
    while (step(reader_.number<uint8_t>())) {
    }
    out_.root_ = pop();
    if (!stack_.empty()) fail("ends with objects left over");
    out_.size_ = reader_.position();
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw_file_error(kind_, file_, cat("the pickle ", message, " (byte ", reader_.position(), ")"),
                     "E-PICKLE", "the file may be damaged, or not a file of weights");
  }
  [[noreturn]] void fail_limit(const char* what, int64_t limit) const {
    throw_file_error(kind_, file_, cat("the pickle has ", what, ", the limit is ", limit),
                     "E-LIMIT");
  }

  PickleNode& node(PickleId id) { return out_.nodes_[static_cast<size_t>(id)]; }

  void push(PickleId id) {
    if (static_cast<int64_t>(++pushes_) > 8 * limits::kPickleObjects)
      fail_limit("too many operations", 8 * limits::kPickleObjects);
    stack_.push_back(id);
  }
  PickleNode& add(PickleKind kind) {
    if (static_cast<int64_t>(out_.nodes_.size()) >= limits::kPickleObjects)
      fail_limit("too many objects", limits::kPickleObjects);
    push(static_cast<PickleId>(out_.nodes_.size()));
    PickleNode& added = out_.nodes_.emplace_back();
    added.kind = kind;
    return added;
  }
  PickleId top() const {
    if (stack_.empty() || stack_.back() == kMarkId) fail("takes an object from an empty stack");
    return stack_.back();
  }
  PickleId pop() {
    const PickleId id = top();
    stack_.pop_back();
    return id;
  }
  // The objects above the last mark.
  std::vector<PickleId> pop_to_mark() {
    const auto mark = std::find(stack_.rbegin(), stack_.rend(), kMarkId).base();
    if (mark == stack_.begin()) fail("closes a group that was not opened");
    std::vector<PickleId> items(mark, stack_.end());
    stack_.erase(mark - 1, stack_.end());
    return items;
  }

  void add_integer(int64_t value) { add(PickleKind::integer).integer = value; }
  void add_boolean(bool value) { add(PickleKind::boolean).integer = value; }

  // Two's complement, little-endian, any length.
  void add_long(uint64_t count) {
    const auto bytes = reader_.take(count);
    if (count > 8) fail("holds an integer of more than 64 bits");
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    if (count > 0 && count < 8 && (value >> (8 * count - 1)) & 1)
      value |= ~uint64_t{0} << 8 * count;
    add_integer(static_cast<int64_t>(value));
  }
  void add_float() {
    const uint64_t big_endian = reader_.number<uint64_t>();
    add(PickleKind::real).real = std::bit_cast<double>(__builtin_bswap64(big_endian));
  }
  void add_text(uint64_t count) {
    const auto text = string(count);
    if (!is_utf8(text)) fail("holds text that is not UTF-8");
    add(PickleKind::text).text = text;
  }
  void add_bytes(uint64_t count) {
    const auto text = string(count);
    add(PickleKind::bytes).text = text;
  }
  std::string_view string(uint64_t count) {
    if (count > static_cast<uint64_t>(limits::kStringBytes))
      fail_limit("a string that is too long", limits::kStringBytes);
    return reader_.text(count);
  }

  void add_tuple(size_t count) {
    std::vector<PickleId> items(count);
    for (size_t i = count; i-- > 0;) items[i] = pop();
    add(PickleKind::tuple).items = std::move(items);
  }

  void put(uint64_t slot) {
    if (slot >= static_cast<uint64_t>(limits::kPickleObjects))
      fail_limit("a memo number that is too large", limits::kPickleObjects);
    const PickleId id = top();
    if (slot >= memo_.size()) memo_.resize(slot + 1, kNotInMemo);
    memo_[slot] = id;
    memo_count_ = std::max(memo_count_, slot + 1);
  }
  void get(uint64_t slot) {
    if (slot >= memo_.size() || memo_[slot] == kNotInMemo) fail("recalls an object it never kept");
    push(memo_[slot]);
  }

  void append(std::vector<PickleId> items) {
    PickleNode& list = node(top());
    if (list.kind == PickleKind::opaque) return;
    if (list.kind != PickleKind::list) fail("appends to what is no list");
    list.items.insert(list.items.end(), items.begin(), items.end());
  }
  void set(std::vector<PickleId> items) {
    if (items.size() % 2 != 0) fail("sets a key without a value");
    PickleNode& dict = node(top());
    if (dict.kind == PickleKind::opaque) return;
    if (dict.kind != PickleKind::dict) fail("sets a key of what is no dictionary");
    dict.items.insert(dict.items.end(), items.begin(), items.end());
  }

  std::string_view line() {
    size_t length = 0;
    ByteReader ahead = reader_;
    while (ahead.number<uint8_t>() != '\n') ++length;
    const auto text = string(length);
    reader_.take(1);
    return text;
  }
  void add_global(std::string_view module, std::string_view name) {
    const std::string full = cat(module, ".", name);
    const int row = find_pickle_global(full);
    if (row < 0)
      throw_file_error(kind_, file_,
                       cat("was refused: its pickle names the global \"", escaped(full),
                           "\", which is not on the list of allowed names; nothing was executed"),
                       "E-PICKLE-GLOBAL",
                       "only plain weights are read; save the state dict alone, or convert the "
                       "file to safetensors where you trust it",
                       escaped(full));
    PickleNode& added = add(PickleKind::global);
    added.detail = static_cast<uint8_t>(row);
    added.text = pickle_global(row).name;
  }
  void stack_global() {
    const PickleNode& name = node(pop());
    const PickleNode& module = node(pop());
    if (name.kind != PickleKind::text || module.kind != PickleKind::text)
      fail("names a global by what is no text");
    add_global(module.text, name.text);
  }

  // ("storage", class, key, location, element count), before torch 1.6 with None at the end
  void add_storage() {
    const PickleNode& id = node(pop());
    if (id.kind != PickleKind::tuple || id.items.size() < 5 || id.items.size() > 6)
      fail("refers to no tensor storage");
    if (id.items.size() == 6 && node(id.items[5]).kind != PickleKind::none)
      fail("refers to a view of a tensor storage");
    const PickleNode& tag = node(id.items[0]);
    const PickleNode& type = node(id.items[1]);
    const PickleNode& key = node(id.items[2]);
    const PickleNode& count = node(id.items[4]);
    if (tag.kind != PickleKind::text || tag.text != "storage" || type.kind != PickleKind::global ||
        pickle_global(type.detail).role != PickleRole::storage || key.kind != PickleKind::text ||
        count.kind != PickleKind::integer || count.integer < 0)
      fail("describes a tensor storage in an unknown way");
    PickleNode& storage = add(PickleKind::storage);
    storage.dtype = pickle_global(type.detail).dtype;
    storage.text = key.text;
    storage.integer = count.integer;
  }

  void add_opaque(const PickleNode& source) {
    const auto text = source.text;
    add(PickleKind::opaque).text = text;
  }

  // The object that `callable` would have made from `arguments`; nothing is called.
  //   construct  by its class's __new__ instead of by a call
  void apply(PickleId callable_id, PickleId arguments_id, bool construct) {
    const PickleNode& callable = node(callable_id);
    const PickleNode& arguments = node(arguments_id);
    if (arguments.kind != PickleKind::tuple) fail("applies a name to what is no tuple");
    if (callable.kind != PickleKind::global) fail("applies what is no name");
    const PickleGlobal& global = pickle_global(callable.detail);
    if (construct && global.role != PickleRole::dict && global.role != PickleRole::inert)
      fail(cat("constructs an object of ", global.name));
    switch (global.role) {
      case PickleRole::dict:
        return add_dict(arguments);
      case PickleRole::rebuild_tensor:
        return add_tensor(arguments);
      case PickleRole::rebuild_parameter:
        if (arguments.items.empty() || node(arguments.items[0]).kind != PickleKind::tensor)
          fail("makes a parameter of what is no tensor");
        return push(arguments.items[0]);
      case PickleRole::numpy_dtype:
        if (arguments.items.empty() || node(arguments.items[0]).kind != PickleKind::text)
          fail("names a numpy type by what is no text");
        add_opaque(node(arguments.items[0]));
        return;
      case PickleRole::numpy_scalar:
        return add_scalar(arguments);
      case PickleRole::inert:
        return add_opaque(callable);
      case PickleRole::storage:
        break;
    }
    fail(cat("makes an object of ", global.name, " itself"));
  }

  // OrderedDict(), OrderedDict([[key, value], ...]), defaultdict(factory).
  void add_dict(const PickleNode& arguments) {
    std::vector<PickleId> items;
    if (!arguments.items.empty() && node(arguments.items[0]).kind == PickleKind::list) {
      for (const PickleId pair : node(arguments.items[0]).items) {
        if (node(pair).items.size() != 2) fail("fills a dictionary with what is no pair");
        items.insert(items.end(), node(pair).items.begin(), node(pair).items.end());
      }
    }
    add(PickleKind::dict).items = std::move(items);
  }

  void add_tensor(const PickleNode& arguments) {
    if (arguments.items.size() < 4) fail("describes a tensor by too few values");
    const std::vector<PickleId> items(arguments.items.begin(), arguments.items.begin() + 4);
    const PickleNode& size = node(items[2]);
    const PickleNode& stride = node(items[3]);
    bool fits = node(items[0]).kind == PickleKind::storage &&
                node(items[1]).kind == PickleKind::integer && size.kind == PickleKind::tuple &&
                stride.kind == PickleKind::tuple && size.items.size() == stride.items.size() &&
                static_cast<int64_t>(size.items.size()) <= limits::kTensorRank;
    for (const PickleNode* tuple : {&size, &stride})
      for (const PickleId i : tuple->items) fits = fits && node(i).kind == PickleKind::integer;
    if (!fits) fail("describes a tensor in an unknown way");
    add(PickleKind::tensor).items = items;
  }

  // Adds the number of type T that `bytes` are, if `type` is numpy's name for T.
  template <class T>
  bool add_number(std::string_view type, std::string_view name, std::string_view bytes) {
    if (type != name || bytes.size() != sizeof(T)) return false;
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    if constexpr (std::is_floating_point_v<T>)
      add(PickleKind::real).real = value;
    else
      add_integer(value);
    return true;
  }

  // numpy scalar(dtype, bytes) of the types that dictionaries of genes hold.
  void add_scalar(const PickleNode& arguments) {
    if (arguments.items.size() != 2) fail("describes a numpy number in an unknown way");
    const auto type = node(arguments.items[0]).text;
    const PickleNode& content = node(arguments.items[1]);
    const auto bytes = content.kind == PickleKind::bytes ? content.text : std::string_view();
    if (!(add_number<double>(type, "f8", bytes) || add_number<float>(type, "f4", bytes) ||
          add_number<int64_t>(type, "i8", bytes) || add_number<int32_t>(type, "i4", bytes) ||
          add_number<int16_t>(type, "i2", bytes) || add_number<uint32_t>(type, "u4", bytes) ||
          add_number<uint16_t>(type, "u2", bytes)))
      add_opaque(node(arguments.items[0]));
  }

  // State for an object that is left out: attributes of a dictionary, content of an opaque node.
  void build() {
    const PickleId state = pop();
    const PickleNode& target = node(top());
    if (target.kind != PickleKind::dict && target.kind != PickleKind::opaque)
      fail("sets the state of a plain value");
    // (3, byte order, ...) is the state of a numpy type.
    const PickleNode& tuple = node(state);
    if (target.kind == PickleKind::opaque && tuple.kind == PickleKind::tuple &&
        tuple.items.size() >= 2 && node(tuple.items[1]).kind == PickleKind::text &&
        node(tuple.items[1]).text == ">")
      fail("holds big-endian numbers");
  }

  bool step(uint8_t opcode) {
    switch (opcode) {
      case kProto: {
        const auto version = reader_.number<uint8_t>();
        if (version < 2 || version > 5) fail(cat("has protocol ", int{version}));
        return true;
      }
      case kFrame:
        reader_.take(8);
        return true;
      case kStop:
        return false;
      case kMark:
        push(kMarkId);
        return true;
      case kPop:
        if (!stack_.empty() && stack_.back() == kMarkId)
          stack_.pop_back();
        else
          pop();
        return true;
      case kPopMark:
        pop_to_mark();
        return true;
      case kDup:
        push(top());
        return true;

      case kNone:
        add(PickleKind::none);
        return true;
      case kNewTrue:
        add_boolean(true);
        return true;
      case kNewFalse:
        add_boolean(false);
        return true;
      case kBinInt:
        add_integer(reader_.number<int32_t>());
        return true;
      case kBinInt1:
        add_integer(reader_.number<uint8_t>());
        return true;
      case kBinInt2:
        add_integer(reader_.number<uint16_t>());
        return true;
      case kLong1:
        add_long(reader_.number<uint8_t>());
        return true;
      case kLong4:
        add_long(reader_.number<uint32_t>());
        return true;
      case kBinFloat:
        add_float();
        return true;
      case kShortBinUnicode:
        add_text(reader_.number<uint8_t>());
        return true;
      case kBinUnicode:
        add_text(reader_.number<uint32_t>());
        return true;
      case kBinUnicode8:
        add_text(reader_.number<uint64_t>());
        return true;
      case kShortBinString:
        add_text(reader_.number<uint8_t>());
        return true;
      case kBinString:
        add_text(reader_.number<uint32_t>());
        return true;
      case kShortBinBytes:
        add_bytes(reader_.number<uint8_t>());
        return true;
      case kBinBytes:
        add_bytes(reader_.number<uint32_t>());
        return true;
      case kBinBytes8:
        add_bytes(reader_.number<uint64_t>());
        return true;

      case kEmptyTuple:
        add(PickleKind::tuple);
        return true;
      case kTuple1:
        add_tuple(1);
        return true;
      case kTuple2:
        add_tuple(2);
        return true;
      case kTuple3:
        add_tuple(3);
        return true;
      case kTuple: {
        auto items = pop_to_mark();
        add(PickleKind::tuple).items = std::move(items);
        return true;
      }
      case kEmptyList:
        add(PickleKind::list);
        return true;
      case kAppend:
        append({pop()});
        return true;
      case kAppends:
        append(pop_to_mark());
        return true;
      case kEmptyDict:
        add(PickleKind::dict);
        return true;
      case kSetItem: {
        const PickleId value = pop();
        set({pop(), value});
        return true;
      }
      case kSetItems:
        set(pop_to_mark());
        return true;

      case kBinPut:
        put(reader_.number<uint8_t>());
        return true;
      case kLongBinPut:
        put(reader_.number<uint32_t>());
        return true;
      case kMemoize:
        put(memo_count_);
        return true;
      case kBinGet:
        get(reader_.number<uint8_t>());
        return true;
      case kLongBinGet:
        get(reader_.number<uint32_t>());
        return true;

      case kGlobal: {
        const auto module = line();
        add_global(module, line());
        return true;
      }
      case kStackGlobal:
        stack_global();
        return true;
      case kBinPersid:
        add_storage();
        return true;
      case kReduce:
      case kNewObj: {
        const PickleId arguments = pop();
        apply(pop(), arguments, opcode == kNewObj);
        return true;
      }
      case kBuild:
        build();
        return true;
      default:
        break;
    }
    fail(cat("uses opcode ", int{opcode}, ", which no file of weights needs"));
  }

  Pickle out_;
  ByteReader reader_;
  FileKind kind_;
  const std::string& file_;
  std::vector<PickleId> stack_;
  std::vector<PickleId> memo_;
  uint64_t memo_count_ = 0;
  uint64_t pushes_ = 0;
};

Pickle Pickle::parse(std::span<const std::byte> bytes, FileKind kind, const std::string& file) {
  if (static_cast<int64_t>(bytes.size()) > limits::kPickleBytes)
    throw_file_error(
        kind, file,
        cat("holds a pickle of ", bytes.size(), " bytes, the limit is ", limits::kPickleBytes),
        "E-LIMIT");
  return PickleMachine(bytes, kind, file).run();
}

const PickleNode* Pickle::find(const PickleNode& dict, std::string_view key) const {
  for (size_t i = dict.items.size(); i >= 2; i -= 2) {
    const PickleNode& name = (*this)[dict.items[i - 2]];
    if (name.kind == PickleKind::text && name.text == key) return &(*this)[dict.items[i - 1]];
  }
  return nullptr;
}

}  // namespace scgraft
