// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <set>

#include "app/inspect/inspect.h"
#include "app/logging.h"
#include "app/nearest.h"
#include "io/genes.h"
#include "io/h5ad.h"
#include "io/h5ad_facts.h"
#include "io/text.h"
#include "model/cell_model.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using nlohmann::json;

constexpr size_t kShownNames = 8;

// A few names for one line of text.
std::string some(const std::vector<std::string>& names) {
  if (names.empty()) return "none";
  std::vector<std::string> few(names.begin(),
                               names.begin() + std::min<ptrdiff_t>(std::ssize(names), kShownNames));
  for (std::string& name : few) name = escaped(name, 40);
  std::string text = joined(few);
  if (names.size() > few.size()) text += fmt::format(" and {} more", names.size() - few.size());
  return text;
}

// Distinct values that are not missing.
int64_t distinct(const Column& column) {
  return std::visit(
      [&](const auto& values) -> int64_t {
        using Values = std::decay_t<decltype(values)>;
        if constexpr (std::is_same_v<Values, Categorical>) {
          std::set<int32_t> used(values.codes.begin(), values.codes.end());
          used.erase(-1);
          return std::ssize(used);
        } else {
          const auto& list = [&]() -> const auto& {
            if constexpr (std::is_same_v<Values, Booleans>)
              return values.values;
            else
              return values;
          }
          ();
          std::set<typename std::decay_t<decltype(list)>::value_type> used;
          for (size_t i = 0; i < list.size(); ++i) {
            if (column.is_missing(static_cast<int64_t>(i))) continue;
            if constexpr (std::is_same_v<Values, Reals>)
              if (list[i] != list[i]) continue;  // NaN
            used.insert(list[i]);
          }
          return std::ssize(used);
        }
      },
      column.values);
}

json obs_columns(const H5ad& file) {
  json columns = json::object();
  for (const std::string& name : file.obs().columns()) {
    const ColumnInfo info = file.obs().info(name);
    json entry = {{"kind", name_of(info.kind)}, {"n_unique", nullptr}};
    if (info.kind != ColumnKind::other) entry["n_unique"] = distinct(file.obs().read(name));
    columns[name] = entry;
  }
  return columns;
}

json slot_list(const H5ad& file) {
  json slots = json::array();
  for (const MatrixSlot& slot : file.slots()) {
    if (slot.format == MatrixFormat::none && slot.name == "X") continue;
    slots.push_back({{"name", slot.name},
                     {"path", slot.path},
                     {"format", name_of(slot.format)},
                     {"dtype", slot.dtype},
                     {"rows", slot.rows},
                     {"columns", slot.columns},
                     {"stored", slot.stored}});
  }
  return slots;
}

// Which slot the other verbs would use, or why none.
std::string expression(Session& session, const H5ad& file) {
  try {
    const SlotChoice choice = choose_slot(file, "auto");
    json entry = {{"slot", choice.slot},
                  {"kind", name_of(choice.facts.kind)},
                  {"reason", choice.reason},
                  {"target_sum", nullptr}};
    if (choice.facts.target_sum) entry["target_sum"] = *choice.facts.target_sum;
    session.result()["expression"] = entry;
    return choice.reason;
  } catch (const DataError& error) {  // such a file can still be looked at
    if (error.code() != "E-VALUES-SCALED" && error.code() != "E-VALUES-NONE") throw;
    session.result()["expression"] = {
        {"slot", nullptr}, {"code", error.code()}, {"reason", error.what()}};
    return cat("none that a model can use (", error.code(), ")");
  }
}

// Of models that name their genes in other ways than by a vocabulary of symbols.
GeneMatch match_by_reader(Session& session, const H5ad& file, const std::string& folder) {
  const std::unique_ptr<CellModel> model = open_cell_model(folder);
  HostContext host(session.context());
  return model->reader(host.get(), file, model->preparation())->match();
}

std::string match(Session& session, const H5ad& file, const std::string& model) {
  const std::filesystem::path vocabulary = std::filesystem::path(model) / "vocab.json";
  const json& chosen = session.result()["expression"]["slot"];
  const MatrixSlot& slot = file.slot(chosen.is_string() ? chosen.get<std::string>() : "X");
  json& genes = session.result()["genes"];
  try {
    const bool symbols = std::filesystem::exists(vocabulary);
    const GeneMatch found = symbols
                                ? match_genes(file, slot, "", Vocabulary::open(vocabulary.string()))
                                : match_by_reader(session, file, model);
    genes = {{"matched", found.matched},
             {"total", found.columns()},
             {"share", found.share()},
             {"duplicates", found.duplicates},
             {"unmatched", found.unmatched}};
    return fmt::format("{} of {} genes are known to the model ({:.1f} %)", found.matched,
                       found.columns(), 100 * found.share());
  } catch (const DataError& error) {  // an answer as good as any other
    if (error.code().starts_with("E-VALUES-") || error.code() == "E-GENE-FEW") {
      genes = {{"code", error.code()}, {"hint", error.hint()}};
      return cat("cannot use it (", error.code(), "): ", error.what());
    }
    if (error.code() != "E-GENE-NONE") throw;
    genes = {{"matched", 0}, {"total", slot.columns}, {"share", 0.0}, {"hint", error.hint()}};
    return cat("no gene is known to it; ", error.hint());
  }
}

std::vector<std::string> described_columns(const json& obs) {
  std::vector<std::string> words;
  for (const auto& [name, column] : obs.items())
    words.push_back(column["n_unique"].is_null()
                        ? name
                        : fmt::format("{} ({} {})", name, column["kind"].get<std::string>(),
                                      column["n_unique"].get<int64_t>()));
  return words;
}

}  // namespace

void inspect_h5ad(Session& session, const std::string& path, const std::string& model) {
  const auto timer = session.time("io");
  const H5ad file = H5ad::open(path);
  const MatrixSlot& x = file.slot("X");
  const ValueFacts facts = value_facts(file, x);
  json& result = session.result();
  result = {{"kind", "h5ad"},
            {"n_obs", file.n_obs()},
            {"n_vars", file.n_vars()},
            {"x", {{"format", name_of(x.format)}, {"dtype", x.dtype}}},
            {"values", name_of(facts.kind)},
            {"gene_ids", name_of(gene_id_kind(file.var().index()))},
            {"obs", obs_columns(file)},
            {"slots", slot_list(file)},
            {"obsm", file.obsm_keys()},
            {"uns", file.uns_keys()}};
  std::vector<std::string> slots;
  for (const json& slot : result["slots"])
    slots.push_back(fmt::format("{} ({} {})", slot["path"].get<std::string>(),
                                slot["format"].get<std::string>(),
                                slot["dtype"].get<std::string>()));
  std::vector<std::string> var = file.var().columns();
  var.insert(var.begin(), "index: " + result["gene_ids"].get<std::string>());
  std::string text =
      cat(escaped(path), ": AnnData, ", file.n_obs(), " cells x ", file.n_vars(), " genes\n");
  text += fmt::format("  X           {} {}, values: {}\n", name_of(x.format), x.dtype,
                      name_of(facts.kind));
  text += fmt::format("  slots       {}\n", some(slots));
  text += fmt::format("  expression  {}\n", expression(session, file));
  text += fmt::format("  genes       {}\n", some(var));
  text += fmt::format("  obs         {}\n", some(described_columns(result["obs"])));
  text += fmt::format("  obsm        {}\n", some(file.obsm_keys()));
  text += fmt::format("  uns         {}\n", some(file.uns_keys()));
  if (!model.empty()) text += fmt::format("  model       {}\n", match(session, file, model));
  session.print(printable(text));
}

}  // namespace scgraft
