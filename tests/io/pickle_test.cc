// SPDX-License-Identifier: Apache-2.0
#include "io/pickle.h"

#include "io/limits.h"
#include "io/pickle_globals.h"
#include "tests/io/archives.h"
#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

using pickled::global;
using pickled::integer;
using pickled::text;
using pickled::tuple;
using pickled::whole;

// The nodes are views of the bytes, which must outlive them.
struct Parsed {
  explicit Parsed(std::string body)
      : bytes(whole(body)), pickle(Pickle::parse(bytes_of(bytes), FileKind::model, "t.pkl")) {}
  const PickleNode& root() const { return pickle[pickle.root()]; }
  const PickleNode& at(size_t i) const { return pickle[root().items.at(i)]; }
  std::string bytes;
  Pickle pickle;
};

void expect_refused(const std::string& body, const std::string& code, const std::string& part) {
  SCOPED_TRACE(part);
  const std::string bytes = whole(body);
  expect_model_error(code, part, [&] { Pickle::parse(bytes_of(bytes), FileKind::model, "t.pkl"); });
}

std::string big_endian(double value) {
  std::string bytes = le(value);
  return {bytes.rbegin(), bytes.rend()};
}

struct Value {
  const char* name;
  std::string body;
  PickleKind kind;
  int64_t integer = 0;
  double real = 0;
  std::string text = {};
};

TEST(Pickle, EveryOpcodeOfAPlainValue) {
  const std::string b(1, '\0');
  const std::vector<Value> values = {
      {"NONE", "N", PickleKind::none},
      {"NEWTRUE", "\x88", PickleKind::boolean, 1},
      {"NEWFALSE", "\x89", PickleKind::boolean, 0},
      {"BININT", integer(-70000), PickleKind::integer, -70000},
      {"BININT1", "K\xff", PickleKind::integer, 255},
      {"BININT2", "M\xff\xfe", PickleKind::integer, 0xfeff},
      {"LONG1 of nothing", "\x8a" + b, PickleKind::integer, 0},
      {"LONG1 negative", "\x8a\x01\xff", PickleKind::integer, -1},
      {"LONG1 positive", "\x8a\x02\xff" + b, PickleKind::integer, 255},
      {"LONG1 least", "\x8a\x08" + le(INT64_MIN), PickleKind::integer, INT64_MIN},
      {"LONG4", "\x8b" + le<uint32_t>(3) + "\x01\x02\x80", PickleKind::integer, -8388095},
      {"BINFLOAT", "G" + big_endian(-0.1), PickleKind::real, 0, -0.1},
      {"SHORT_BINUNICODE",
       "\x8c\x03"
       "abc",
       PickleKind::text, 0, 0, "abc"},
      {"BINUNICODE", text("\xc3\xa9"), PickleKind::text, 0, 0, "\xc3\xa9"},
      {"BINUNICODE8", "\x8d" + le<uint64_t>(2) + "ab", PickleKind::text, 0, 0, "ab"},
      {"SHORT_BINSTRING",
       "U\x02"
       "ab",
       PickleKind::text, 0, 0, "ab"},
      {"BINSTRING", "T" + le<uint32_t>(2) + "ab", PickleKind::text, 0, 0, "ab"},
      {"SHORT_BINBYTES", "C\x02\xff\xfe", PickleKind::bytes, 0, 0, "\xff\xfe"},
      {"BINBYTES", "B" + le<uint32_t>(2) + "\xff\xfe", PickleKind::bytes, 0, 0, "\xff\xfe"},
      {"BINBYTES8", "\x8e" + le<uint64_t>(1) + "\xff", PickleKind::bytes, 0, 0, "\xff"},
      {"PROTO again", "\x80\x05N", PickleKind::none},
      {"FRAME", "\x95" + le<uint64_t>(1) + "N", PickleKind::none},
      {"POP", "N" + integer(7) + "0", PickleKind::none},
      {"POP of a mark", "N(0", PickleKind::none},
      {"POP_MARK", "N(" + integer(7) + integer(8) + "1", PickleKind::none},
  };
  for (const Value& want : values) {
    SCOPED_TRACE(want.name);
    const Parsed got(want.body);
    EXPECT_EQ(got.root().kind, want.kind);
    EXPECT_EQ(got.root().integer, want.integer);
    EXPECT_EQ(got.root().real, want.real);
    EXPECT_EQ(got.root().text, want.text);
    EXPECT_EQ(got.pickle.size(), got.bytes.size());
  }
}

TEST(Pickle, EveryOpcodeOfAContainer) {
  const std::string one = integer(1), two = integer(2), three = integer(3);
  struct Case {
    const char* name;
    std::string body;
    PickleKind kind;
    std::vector<int64_t> items;
  };
  const std::vector<Case> cases = {
      {"EMPTY_TUPLE", ")", PickleKind::tuple, {}},
      {"TUPLE1", one + "\x85", PickleKind::tuple, {1}},
      {"TUPLE2", one + two + "\x86", PickleKind::tuple, {1, 2}},
      {"TUPLE3", one + two + three + "\x87", PickleKind::tuple, {1, 2, 3}},
      {"TUPLE", "(" + one + two + "t", PickleKind::tuple, {1, 2}},
      {"EMPTY_LIST", "]", PickleKind::list, {}},
      {"APPEND", "]" + one + "a", PickleKind::list, {1}},
      {"APPENDS", "](" + one + two + "e", PickleKind::list, {1, 2}},
      {"EMPTY_DICT", "}", PickleKind::dict, {}},
      {"SETITEM", "}" + one + two + "s", PickleKind::dict, {1, 2}},
      {"SETITEMS", "}(" + one + two + three + one + "u", PickleKind::dict, {1, 2, 3, 1}},
      {"DUP", one + "2\x86", PickleKind::tuple, {1, 1}},
      {"BINPUT and BINGET", one + "q\x05" + two + "h\x05\x87", PickleKind::tuple, {1, 2, 1}},
      {"LONG_BINPUT and LONG_BINGET",
       one + "r" + le<uint32_t>(300) + "j" + le<uint32_t>(300) + "\x86",
       PickleKind::tuple,
       {1, 1}},
      {"MEMOIZE",
       one + "\x94" + two + "\x94h" + std::string(1, '\0') + "\x87",
       PickleKind::tuple,
       {1, 2, 1}},
  };
  for (const Case& want : cases) {
    SCOPED_TRACE(want.name);
    const Parsed got(want.body);
    EXPECT_EQ(got.root().kind, want.kind);
    std::vector<int64_t> items;
    for (size_t i = 0; i < got.root().items.size(); ++i) items.push_back(got.at(i).integer);
    EXPECT_EQ(items, want.items);
  }
}

TEST(Pickle, TheLastOfEqualKeysWins) {
  const Parsed got(pickled::dict({{"a", integer(1)}, {"b", integer(2)}, {"a", integer(3)}}));
  EXPECT_EQ(got.pickle.find(got.root(), "a")->integer, 3);
  EXPECT_EQ(got.pickle.find(got.root(), "b")->integer, 2);
  EXPECT_EQ(got.pickle.find(got.root(), "c"), nullptr);
}

TEST(Pickle, AllowedNamesBecomeData) {
  const std::string od = global("collections", "OrderedDict");
  EXPECT_EQ(Parsed(od + ")R").root().kind, PickleKind::dict);
  EXPECT_EQ(Parsed(od + ")\x81").root().kind, PickleKind::dict);
  const Parsed pairs(od + "](" + tuple({text("k"), integer(4)}) + "e\x85R");
  EXPECT_EQ(pairs.pickle.find(pairs.root(), "k")->integer, 4);
  // The same name from the stack, as protocol 4 writes it.
  EXPECT_EQ(Parsed(text("collections") + text("OrderedDict") + "\x93)R").root().kind,
            PickleKind::dict);
  // Attributes of a dictionary are left out.
  EXPECT_EQ(
      Parsed(od + ")R" + pickled::dict({{"_metadata", integer(1)}}) + "b").root().items.size(), 0u);

  const Parsed tensor(pickled::tensor("HalfStorage", "12", 6, 1, {2, 2}, {2, 1}));
  ASSERT_EQ(tensor.root().kind, PickleKind::tensor);
  EXPECT_EQ(tensor.at(0).kind, PickleKind::storage);
  EXPECT_EQ(tensor.at(0).dtype, DType::f16);
  EXPECT_EQ(tensor.at(0).text, "12");
  EXPECT_EQ(tensor.at(0).integer, 6);
  EXPECT_EQ(tensor.at(1).integer, 1);
  const std::string parameter =
      global("torch._utils", "_rebuild_parameter") +
      tuple({pickled::tensor("FloatStorage", "0", 1, 0, {}, {}), "\x88", od + ")R"}) + "R";
  EXPECT_EQ(Parsed(parameter).root().kind, PickleKind::tensor);

  const auto scalar = [](const std::string& type, const std::string& bytes) {
    const std::string dtype = global("numpy", "dtype") + tuple({text(type), "\x89", "\x88"}) + "R";
    return global("numpy.core.multiarray", "scalar") +
           tuple({dtype, "C" + std::string(1, static_cast<char>(bytes.size())) + bytes}) + "R";
  };
  EXPECT_EQ(Parsed(scalar("f8", le(2.5))).root().real, 2.5);
  EXPECT_EQ(Parsed(scalar("i8", le(int64_t{-9}))).root().integer, -9);
  EXPECT_EQ(Parsed(scalar("f4", le(2.5f))).root().real, 2.5);
  EXPECT_EQ(Parsed(scalar("i4", le(int32_t{-9}))).root().integer, -9);
  EXPECT_EQ(Parsed(scalar("i2", le(int16_t{-9}))).root().integer, -9);
  EXPECT_EQ(Parsed(scalar("u4", le(uint32_t{4'000'000'000}))).root().integer, 4'000'000'000);
  EXPECT_EQ(Parsed(scalar("u2", le(uint16_t{65000}))).root().integer, 65000);
  // Of another type, or not of its size.
  EXPECT_EQ(Parsed(scalar("f2", "ab")).root().kind, PickleKind::opaque);
  EXPECT_EQ(Parsed(scalar("f8", le(2.5f))).root().kind, PickleKind::opaque);
  EXPECT_EQ(Parsed(scalar("i2", le(int64_t{1}))).root().kind, PickleKind::opaque);
}

// Rows of the allow-list that have no meaning here stay opaque, whatever is done to them.
TEST(Pickle, HarmlessObjectsAreNotLookedInto) {
  const std::string frame = global("pandas.core.frame", "DataFrame") + ")\x81";
  const Parsed got(frame + pickled::dict({{"_mgr", integer(1)}}) + "b");
  EXPECT_EQ(got.root().kind, PickleKind::opaque);
  EXPECT_EQ(got.root().text, "pandas.core.frame.DataFrame");
  EXPECT_TRUE(got.root().items.empty());
  EXPECT_EQ(Parsed(frame + integer(1) + "a").root().kind, PickleKind::opaque);
  EXPECT_EQ(Parsed(frame + integer(1) + integer(1) + "s").root().kind, PickleKind::opaque);
}

TEST(Pickle, EveryOtherNameIsRefusedByName) {
  const std::vector<std::pair<std::string, std::string>> names = {
      {"os", "system"},
      {"posix", "system"},
      {"builtins", "eval"},
      {"builtins", "exec"},
      {"builtins", "getattr"},
      {"__builtin__", "eval"},
      {"subprocess", "Popen"},
      {"torch", "load"},
      {"torch", "FloatStorage2"},
      {"numpy", "load"},
      {"collections", "namedtuple"},
      {"torch._utils", "_rebuild_tensor"},
      {"functools", "partial"},
      {"operator", "attrgetter"},
      {"", "OrderedDict"},
      {"collections.OrderedDict", "fromkeys"}};
  TemporaryFolder folder;
  const std::string proof = folder / "executed";
  for (const auto& [module, name] : names) {
    const std::string full = cat("\"", module, ".", name, "\"");
    // Named and not used, called, constructed, and from the stack.
    expect_refused(global(module, name), "E-PICKLE-GLOBAL", full);
    expect_refused(global(module, name) + text("touch " + proof) + "\x85R", "E-PICKLE-GLOBAL",
                   full);
    expect_refused(global(module, name) + ")\x81", "E-PICKLE-GLOBAL", full);
    expect_refused(text(module) + text(name) + "\x93", "E-PICKLE-GLOBAL", full);
    expect_refused("N" + global(module, name) + "0", "E-PICKLE-GLOBAL", full);
  }
  EXPECT_FALSE(std::filesystem::exists(proof));
  expect_refused(global("o\x1b[31ms", "sys\ttem"), "E-PICKLE-GLOBAL", "o\\x1b[31ms.sys\\ttem");
}

TEST(Pickle, AllowedNamesDoOnlyWhatTheyAreFor) {
  const std::string od = global("collections", "OrderedDict");
  const std::string rebuild = global("torch._utils", "_rebuild_tensor_v2");
  const std::string storage_class = global("torch", "FloatStorage");
  const std::string storage =
      tuple({text("storage"), storage_class, text("0"), text("cpu"), integer(4)}) + "Q";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {storage_class + ")R", "makes an object of torch.FloatStorage itself"},
      {rebuild + ")\x81", "constructs an object of torch._utils._rebuild_tensor_v2"},
      {rebuild + ")R", "too few values"},
      {rebuild + tuple({"N", integer(0), ")", ")"}) + "R", "in an unknown way"},
      {rebuild + tuple({storage, integer(0), integer(1), ")"}) + "R", "in an unknown way"},
      {rebuild + tuple({storage, integer(0), pickled::integers({2, 2}), pickled::integers({1})}) +
           "R",
       "in an unknown way"},
      {rebuild +
           tuple({storage, integer(0), pickled::integers(std::vector<int32_t>(9, 1)),
                  pickled::integers(std::vector<int32_t>(9, 1))}) +
           "R",
       "in an unknown way"},
      {global("torch._utils", "_rebuild_parameter") + tuple({"N"}) + "R", "what is no tensor"},
      {global("numpy", "dtype") + tuple({integer(1)}) + "R", "by what is no text"},
      {od + integer(1) + "R", "what is no tuple"},
      {integer(1) + ")R", "applies what is no name"},
      {od + "](" + tuple({integer(1)}) + "e\x85R", "what is no pair"},
      {integer(1) + "}b", "state of a plain value"},
      {"]}b", "state of a plain value"},
      {text("0") + "Q", "no tensor storage"},
      {tuple({text("storage"), od, text("0"), text("cpu"), integer(4)}) + "Q", "in an unknown way"},
      {tuple({text("module"), storage_class, text("0"), text("cpu"), integer(4)}) + "Q",
       "in an unknown way"},
      {tuple({text("storage"), storage_class, text("0"), text("cpu"), integer(-4)}) + "Q",
       "in an unknown way"},
      {integer(1) + text("a") + "\x93", "by what is no text"},
      {global("numpy", "dtype") + tuple({text("f8")}) + "R" + tuple({integer(3), text(">")}) + "b",
       "big-endian"},
  };
  for (const auto& [body, part] : cases) expect_refused(body, "E-PICKLE", part);
}

TEST(Pickle, OpcodesThatWeightsDoNotNeedAreRefused) {
  // Every byte that is no opcode of the list: instances, extension registry, persistent ids by
  // text, calls by keyword, sets, out-of-band buffers, numbers as text.
  const std::string known =
      "(.012BCGJKMNQRTUX]abcehjqrstu})\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x93\x94\x95";
  int refused = 0;
  for (int opcode = 0; opcode < 256; ++opcode) {
    if (known.find(static_cast<char>(opcode)) != std::string::npos) continue;
    expect_refused("N" + std::string(1, static_cast<char>(opcode)) + "os\nsystem\n", "E-PICKLE",
                   cat("uses opcode ", opcode, ","));
    ++refused;
  }
  EXPECT_EQ(refused, 256 - static_cast<int>(known.size()));
}

TEST(Pickle, DamagedStreamsAreRefused) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "empty stack"},
      {"0", "empty stack"},
      {"(0", "empty stack"},
      {"2", "empty stack"},
      {"(2", "empty stack"},
      {"NN", "left over"},
      {"(N", "left over"},
      {"Nt", "not opened"},
      {"N1", "not opened"},
      {"]e", "not opened"},
      {"\x86", "empty stack"},
      {"N(\x86", "empty stack"},
      {"NNa", "no list"},
      {"](N"
       "N"
       "u",
       "no dictionary"},
      {"}(Nu", "key without a value"},
      {"h\x07", "never kept"},
      {"Nq\x01h" + std::string(1, '\0'), "never kept"},
      {"\x80\x01N", "protocol 1"},
      {"\x80\x06N", "protocol 6"},
      {"\x8a\x09" + std::string(9, '\1'), "more than 64 bits"},
      {"X" + le<uint32_t>(2) + "\xc0\x80", "not UTF-8"},
      {"U\x01\xff", "not UTF-8"},
  };
  for (const auto& [body, part] : cases) expect_refused(body, "E-PICKLE", part);
}

TEST(Pickle, EveryCutIsNoticed) {
  const std::string good =
      whole(pickled::dict({{"weight", pickled::tensor("FloatStorage", "0", 4, 0, {2, 2}, {2, 1})},
                           {"epoch", "\x8a\x02\x01\x02"},
                           {"loss", "G" + big_endian(0.5)}}));
  EXPECT_NO_THROW(Pickle::parse(bytes_of(good), FileKind::model, "t"));
  for (size_t length = 0; length < good.size(); ++length) {
    const std::string cut = good.substr(0, length);
    EXPECT_THROW(Pickle::parse(bytes_of(cut), FileKind::model, "t"), ModelError) << length;
  }
}

TEST(Pickle, ClaimsAreComparedWithTheLimits) {
  // A string longer than the stream, and one longer than any string may be.
  expect_refused("X" + le<uint32_t>(1000) + "abc", "E-TRUNCATED", "ends early");
  expect_refused("\x8d" + le<uint64_t>(UINT64_MAX) + "abc", "E-LIMIT", "too long");
  expect_refused("T" + le<uint32_t>(static_cast<uint32_t>(limits::kStringBytes) + 1), "E-LIMIT",
                 "too long");
  expect_refused("\x8b" + le<uint32_t>(UINT32_MAX), "E-TRUNCATED", "ends early");
  // A memo slot that would need 16 GB.
  expect_refused("Nr" + le<uint32_t>(UINT32_MAX), "E-LIMIT", "memo number");
  // More objects than there may be, from a byte each.
  expect_refused(std::string(static_cast<size_t>(limits::kPickleObjects) + 1, 'N'), "E-LIMIT",
                 "too many objects");
  // One object, pushed over and over.
  expect_refused("N" + std::string(8 * static_cast<size_t>(limits::kPickleObjects) + 1, '2'),
                 "E-LIMIT", "too many operations");
  const std::string huge(static_cast<size_t>(limits::kPickleBytes) + 1, '.');
  expect_model_error("E-LIMIT", "64000001 bytes",
                     [&] { Pickle::parse(bytes_of(huge), FileKind::model, "t"); });
}

// A list of twice the same list of twice the same list ...: 2^60 leaves, 60 nodes; and a list that
// holds itself. Parsing them costs what they take in the stream.
TEST(Pickle, SharedAndCyclicObjectsAreHarmless) {
  std::string doubling = "N";
  for (int i = 0; i < 60; ++i) doubling += "2\x86";
  EXPECT_EQ(Parsed(doubling).root().items.size(), 2u);
  const std::string zero(1, '\0');
  const Parsed cyclic("]q" + zero + "h" + zero + "a");
  EXPECT_EQ(cyclic.root().items, std::vector<PickleId>{cyclic.pickle.root()});
}

TEST(Pickle, ErrorsAreOfTheKindOfTheFile) {
  const std::string bytes = whole("");
  expect_file_error(ExitCode::data, "E-PICKLE", "t.pkl",
                    [&] { Pickle::parse(bytes_of(bytes), FileKind::data, "t.pkl"); });
}

}  // namespace
}  // namespace scgraft
