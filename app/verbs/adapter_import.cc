// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include "adapters/peft_tensors.h"
#include "adapters/scpeft_import.h"
#include "adapters/store.h"
#include "adapters/store_files.h"
#include "app/add_verb.h"
#include "app/verbs/adapter_verbs.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/text.h"
#include "model/cell_model.h"
#include "model/model_folder.h"
#include "runtime/error.h"
#include "runtime/version.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string file;
  std::string model;
  std::string labels;
};

// The names of classes: a text file with one per line, or labels.json of an adapter.
std::vector<std::string> read_labels(const std::string& path) {
  if (path.ends_with(".json")) {
    const nlohmann::json object = read_json(path, FileKind::model);
    const nlohmann::json& list = object.is_object() ? object.value("classes", object) : object;
    const bool fits = list.is_array() && std::all_of(list.begin(), list.end(),
                                                     [](const auto& v) { return v.is_string(); });
    if (!fits)
      throw_file_error(FileKind::model, path,
                       "is neither a list of names nor has one in \"classes\"", "E-JSON", "");
    return list.get<std::vector<std::string>>();
  }
  const auto file = MappedFile::open(path, FileKind::model);
  const std::string_view text(reinterpret_cast<const char*>(file->bytes().data()),
                              file->bytes().size());
  std::vector<std::string> names;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) names.emplace_back(line);
    begin = end + 1;
  }
  return names;
}

[[noreturn]] void fail(const std::string& message, const std::string& hint) {
  ConfigError error(message, "E-LABEL-NAMES");
  error.set_hint(hint);
  throw error;
}

std::vector<std::string> labels_of(const Options& options, int64_t classes) {
  if (options.labels.empty()) {
    if (classes > 0)
      fail(
          cat(escaped(options.file), " has a head of ", classes,
              " classes, and does not say what they are called"),
          "--labels FILE, one name per line in the order of the codes (the alphabet's, as a rule)");
    return {};
  }
  std::vector<std::string> names = read_labels(options.labels);
  if (static_cast<int64_t>(names.size()) != classes)
    fail(cat(escaped(options.labels), " has ", names.size(), " names, the head of ",
             escaped(options.file), " has ", classes, " classes"),
         "one name per line, for every class of the data it was trained with");
  const std::set<std::string> different(names.begin(), names.end());
  if (different.size() != names.size())
    fail(cat(escaped(options.labels), " has a name twice"), "classes have different names");
  return names;
}

// What scPEFT keeps beside the weights: of scGPT peft_config.json, of scBERT config.json.
nlohmann::json config_beside(const std::string& file, std::string_view backbone) {
  const fs::path folder = fs::path(file).parent_path();
  const std::string path =
      (folder / (backbone == "scbert" ? "config.json" : "peft_config.json")).string();
  std::error_code ignored;
  return fs::exists(path, ignored) ? read_json(path, FileKind::model) : nlohmann::json();
}

// Writes and reports what both kinds of import found.
struct Imported {
  CellModel& model;
  Adapter* adapter;  // may be null
  std::vector<Parameter*> trained;
  std::vector<std::string> labels;
  nlohmann::json provenance;  // of where it came from
};

void save_import(Session& session, const Options& options, const Imported& got) {
  AdapterBundle bundle;
  bundle.base_path = fs::absolute(options.model).lexically_normal().string();
  bundle.base_fingerprint = got.model.fingerprint();
  bundle.labels = got.labels;
  bundle.preprocess = got.model.preparation().to_json();
  bundle.provenance = {
      {"command_line", session.command_line()}, {"version", kVersion}, {"git", kGitHash}};
  bundle.provenance.update(got.provenance);
  const std::string& output = session.flags().output;
  save_adapter(output, bundle, got.adapter, got.model.backbone(), got.trained, session.overwrite());
  session.add_output(output);

  int64_t parameters = 0;
  const std::string type(got.adapter == nullptr ? "none" : got.adapter->kind());
  if (got.adapter != nullptr)
    for (const Parameter* p : got.adapter->parameters()) parameters += p->value.numel();
  std::vector<std::string> trained;
  for (const Parameter* p : got.trained) trained.push_back(p->name);
  session.result() = {
      {"type", type},
      {"base", {{"path", bundle.base_path}, {"fingerprint", bundle.base_fingerprint}}},
      {"parameters", parameters},
      {"trained", trained},
      {"labels", got.labels}};
  std::string text = fmt::format("{}: {} of {} parameters", output, type, parameters);
  if (!got.labels.empty()) text += fmt::format(", a head of {} classes", got.labels.size());
  session.print(text + '\n');
}

void import_scpeft_file(Session& session, const Options& options) {
  const Checkpoint file = open_checkpoint(options.file);
  const int64_t classes = scpeft_classes(file);
  const std::vector<std::string> labels = labels_of(options, classes);
  const std::unique_ptr<CellModel> model = open_cell_model(options.model, {.classes = classes});
  const ScpeftImport got =
      import_scpeft(config_beside(file.file(), model->backbone().kind()), file, model->backbone());
  nlohmann::json merged = nlohmann::json::array();
  for (const ScpeftImport::Merged& one : got.merged)
    merged.push_back({{"weight", one.weight}, {"times", one.times}});
  save_import(session, options,
              {.model = *model,
               .adapter = got.adapter.get(),
               .trained = got.trained,
               .labels = labels,
               .provenance = {{"imported_from", file.file()},
                              {"imported_fingerprint", file.fingerprint()},
                              {"merged", merged}}});
  session.result()["merged"] = merged;
  session.result()["ignored"] = got.ignored;
  if (!got.merged.empty())
    session.print(fmt::format(
        "  {} weights of the file hold the LoRA product already; the adapter is meant beside the "
        "weights of {}\n",
        got.merged.size(), options.model));
}

// Classes of the head that a folder of PEFT holds for such a model; 0: none.
int64_t peft_classes(const Options& options, const LoadedBundle& loaded) {
  const std::unique_ptr<CellModel> model = open_cell_model(options.model, {.classes = 1});
  const std::vector<Parameter*> head = model->network().head_parameters();
  if (head.empty()) return 0;
  const std::string key =
      adapter_files::trained_key(loaded.config.kind, head.back()->name);  // biases of the classes
  for (const TensorInfo& info : loaded.tensors.tensors())
    if (info.name == key && info.dims.size() == 1) return info.dims[0];
  return 0;
}

// A part of a head that is neither in the adapter nor in the base was random in Python, and is
// lost.
void require_whole_head(const Options& options, CellModel& model, const PeftTensors& placed) {
  const std::unique_ptr<ModelFolder> base = open_model_folder(options.model);
  for (const Parameter* p : model.network().head_parameters())
    if (!placed.trained.contains(p->name) &&
        base->backbone().parameters().find(p->name) == nullptr) {
      ModelError error(cat(escaped(options.file), ": ", p->name,
                           " is neither in the adapter nor in the model ", escaped(options.model)),
                       "E-ADAPTER-TENSOR");
      error.set_hint("train with it in modules_to_save, or name the model that has it");
      error.set_where(options.file, p->name);
      throw error;
    }
}

void import_peft_folder(Session& session, const Options& options) {
  LoadedBundle loaded = load_adapter(options.file);
  if (loaded.recorded) {
    ConfigError error(cat(escaped(options.file), " is an adapter of this program already"),
                      "E-USAGE");
    error.set_hint("use it with --adapter, or give a folder that PEFT wrote");
    throw error;
  }
  const int64_t classes = peft_classes(options, loaded);
  const std::vector<std::string> labels = labels_of(options, classes);
  // With a head where one should be in the file, so that its absence is seen.
  const bool wants_head = !loaded.config.modules_to_save.empty();
  const std::unique_ptr<CellModel> model =
      open_cell_model(options.model, {.classes = std::max<int64_t>(classes, wants_head ? 1 : 0)});
  loaded.bundle.base_fingerprint = model->fingerprint();  // --model says what it was made for
  PeftTensors placed;
  if (loaded.config.kind == "prefix_tuning")
    for (const std::string& name : loaded.saved) placed.trained[name] = name;
  else
    placed = place_peft_tensors(loaded, model->backbone());
  const std::unique_ptr<Adapter> adapter =
      attach_adapter(loaded, model->backbone(), model->fingerprint(), false);
  if (classes > 0) require_whole_head(options, *model, placed);
  std::vector<Parameter*> trained;
  for (const auto& [name, key] : placed.trained)
    trained.push_back(model->backbone().parameters().find(name));
  if (adapter) adapter->detach(model->backbone());
  save_import(session, options,
              {.model = *model,
               .adapter = adapter.get(),
               .trained = trained,
               .labels = labels,
               .provenance = {{"imported_from", fs::absolute(options.file).string()}}});
}

void import(Session& session, const Options& options) {
  const auto timer = session.time("io");
  std::error_code ignored;
  if (fs::exists(fs::path(options.file) / "adapter_config.json", ignored))
    import_peft_folder(session, options);
  else
    import_scpeft_file(session, options);
}

}  // namespace

void add_adapter_import(CLI::App& parent, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(
      parent, session,
      {"import",
       "Take over a folder of PEFT, or the adapter out of a whole model that scPEFT saved",
       {"scgraft adapter import peft-lora --model models/geneformer -o adapters/ms",
        "scgraft adapter import model.pt --model models/scgpt --labels types.txt -o adapters/ms",
        "scgraft adapter import scpeft/ms --model models/scgpt --labels types.txt -o adapters/ms"}},
      [&session, options] { import(session, *options); });
  verb.add_option("FILE", options->file, "Folder of PEFT, or a checkpoint of scPEFT or its folder")
      ->required();
  verb.add_option("--model", options->model, "The base model that it was trained from")
      ->type_name("DIR")
      ->required();
  verb.add_option("--labels", options->labels,
                  "Names of the classes of its head, one per line, or a labels.json")
      ->type_name("FILE");
  add_common_flags(verb, session.flags(), {.output_required = true});
}

}  // namespace scgraft
