// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/cell_tokenizer.h"

#include <charconv>
#include <cmath>
#include <unordered_set>
#include <utility>

#include "io/mapped_file.h"
#include "io/text.h"
#include "model/parallel_rows.h"
#include "model/preprocess.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr double kTargetSum = 1e4;
constexpr std::string_view kHead = "gene_name\tindex";

// The next line of a text, without its end.
std::string_view take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

template <class T>
bool read_number(std::string_view text, T& to) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::vector<std::string> read_scfoundation_genes(const std::string& path, int64_t genes) {
  const auto fail = [&](const std::string& message) {
    throw_file_error(FileKind::model, path, message, "E-GENE-ORDER",
                     "use the table of genes that came with the model");
  };
  const auto file = MappedFile::open(path, FileKind::model);
  std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  if (take_line(text) != kHead) fail("does not begin with the line \"gene_name<TAB>index\"");
  std::vector<std::string> names;
  std::unordered_set<std::string_view> seen;
  while (!text.empty()) {
    const std::string_view line = take_line(text);
    const size_t tab = line.find('\t');
    int64_t index = -1;
    if (tab == std::string_view::npos || tab == 0 || !read_number(line.substr(tab + 1), index))
      fail(cat("line ", names.size() + 2, " is no gene and index: \"", escaped(line, 60), "\""));
    const std::string_view name = line.substr(0, tab);
    if (index != static_cast<int64_t>(names.size()))
      fail(cat("line ", names.size() + 2, " has the index ", index, ", ", names.size(),
               " was wanted"));
    if (!seen.insert(name).second) fail(cat("lists the gene \"", escaped(name, 40), "\" twice"));
    names.emplace_back(name);
  }
  if (static_cast<int64_t>(names.size()) != genes)
    fail(cat("lists ", names.size(), " genes, the model has ", genes));
  return names;
}

TargetDepth TargetDepth::parse(std::string_view text) {
  TargetDepth target;
  if (text == "bulk") {
    target.kind = Kind::bulk;
    return target;
  }
  const bool known = !text.empty() && std::string_view("tfa").find(text[0]) != text.npos;
  if (!known || !read_number(text.substr(1), target.value) || !std::isfinite(target.value) ||
      (text[0] == 'f' && !(target.value > 0)))
    throw ConfigError(cat("a target depth is t4, f2 or a1 (a value, a factor above 0, or what is "
                          "added), or bulk, got \"",
                          escaped(text, 40), "\""),
                      "E-CONFIG");
  target.kind = text[0] == 't' ? Kind::fixed : text[0] == 'f' ? Kind::factor : Kind::shift;
  return target;
}

ScfoundationTokenizer::ScfoundationTokenizer(std::span<const std::string> reference,
                                             std::span<const std::string> genes, std::string file,
                                             const ScfoundationTokenOptions& options)
    : file_(std::move(file)),
      options_(options),
      alignment_(reference, genes, file_, options.min_share) {}

void ScfoundationTokenizer::fill(std::span<const int32_t> columns, std::span<const float> values,
                                 std::span<float> out) const {
  const auto genes = static_cast<size_t>(alignment_.genes());
  const std::span<float> x = out.first(genes);
  alignment_.align(columns, values, x);
  const double total = total_of(x);
  out[genes] = out[genes + 1] = 0;
  if (!(total > 0)) return;
  if (!options_.normalised)
    for (float& value : x)
      if (value != 0)
        value = static_cast<float>(std::log1p(static_cast<double>(value) / total * kTargetSum));
  const TargetDepth& target = options_.target;
  if (target.kind == TargetDepth::Kind::bulk) {
    out[genes] = out[genes + 1] = static_cast<float>(std::log10(total_of(x)));
    return;
  }
  const double t = target.kind == TargetDepth::Kind::fixed    ? target.value
                   : target.kind == TargetDepth::Kind::factor ? std::log10(total * target.value)
                                                              : std::log10(total) + target.value;
  out[genes] = static_cast<float>(t);
  out[genes + 1] = static_cast<float>(std::log10(total));
}

void ScfoundationTokenizer::tokenise(Context& ctx, const SparseRows& rows,
                                     TokenisedCells& out) const {
  require(rows.columns == columns(), "ScfoundationTokenizer: wanted rows of ", columns(),
          " columns, got ", rows.columns);
  require_expression(rows, file_, "the matrix");
  const int64_t cells = rows.rows();
  const auto genes = static_cast<size_t>(alignment_.genes());
  std::vector<std::vector<int32_t>> ids(static_cast<size_t>(cells));
  std::vector<std::vector<float>> values(static_cast<size_t>(cells));
  std::vector<uint8_t> empty(static_cast<size_t>(cells), 0);
  parallel_rows(ctx, cells, [&](int64_t begin, int64_t end) {
    std::vector<float> x(genes + 2);
    for (int64_t row = begin; row < end; ++row) {
      const auto cell = static_cast<size_t>(row);
      fill(rows.columns_of(row), rows.values_of(row), x);
      for (size_t i = 0; i < genes; ++i)
        if (x[i] > 0) {
          ids[cell].push_back(static_cast<int32_t>(i));
          values[cell].push_back(x[i]);
        }
      if (ids[cell].empty()) {
        empty[cell] = 1;
        ids[cell].push_back(static_cast<int32_t>(genes + 2));
        values[cell].push_back(options_.pad_value);
      }
      for (size_t i = genes; i < genes + 2; ++i) {
        ids[cell].push_back(static_cast<int32_t>(i));
        values[cell].push_back(x[i]);
      }
    }
  });
  out.first_cell = rows.first_row;
  out.offsets.assign(1, 0);
  out.genes.clear();
  out.values.clear();
  out.empty.clear();
  for (size_t cell = 0; cell < ids.size(); ++cell) {
    out.genes.insert(out.genes.end(), ids[cell].begin(), ids[cell].end());
    out.values.insert(out.values.end(), values[cell].begin(), values[cell].end());
    out.offsets.push_back(static_cast<int64_t>(out.genes.size()));
    if (empty[cell] != 0) out.empty.push_back(rows.first_row + static_cast<int64_t>(cell));
  }
}

}  // namespace scgraft
