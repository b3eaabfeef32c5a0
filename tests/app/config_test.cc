// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/config/flags.h"
#include "app/config/load.h"
#include "app/config/schema.h"
#include "runtime/error.h"
#include "tests/app/program.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;

class ConfigTest : public ::testing::Test {
 protected:
  std::string file(const std::string& text) const { return put(folder_ / "run.yaml", text); }
  RunConfig load(const std::string& text, Origins* origins = nullptr) const {
    return load_run_config(file(text), {}, {}, origins);
  }
  // The message about a file, without its folder; empty when there is nothing wrong with it.
  std::string fault(const std::string& text) const {
    try {
      load(text);
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::usage);
      std::string message = error.what();
      for (size_t at; (at = message.find(folder_ / "")) != std::string::npos;)
        message.erase(at, (folder_ / "").size());
      return message;
    }
    return {};
  }
  TemporaryFolder folder_;
};

TEST_F(ConfigTest, AnEmptyFileGivesTheDefaults) {
  const RunConfig config = load("");
  EXPECT_EQ(config.train.epochs, RunConfig().train.epochs);
  EXPECT_EQ(config.adapter.target_modules, (std::vector<std::string>{"q", "v"}));
}

TEST_F(ConfigTest, EveryKindOfValueIsTypedByItsKey) {
  const RunConfig config = load(
      "schema_version: 1\n"
      "base_model: models/scgpt\n"
      "adapter:\n  r: 16\n  lora_alpha: 3.2e1\n  target_modules: [q, ffn_out]\n  last_layer: -1\n"
      "data:\n  label_key: no\n  gene_key: null\n  exclude_labels: [\"a, b\", off]\n"
      "train:\n  learning_rate: 1e-4\n  micro_batch_size: auto\n  max_seconds: 1h30m\n");
  EXPECT_EQ(config.base_model, "models/scgpt");
  EXPECT_EQ(config.adapter.r, 16);
  EXPECT_EQ(config.adapter.lora_alpha, 32);
  EXPECT_EQ(config.adapter.target_modules, (std::vector<std::string>{"q", "ffn_out"}));
  EXPECT_EQ(config.data.label_key, "no") << "only true and false are booleans";
  EXPECT_EQ(config.data.gene_key, "");
  EXPECT_EQ(config.data.exclude_labels, (std::vector<std::string>{"a, b", "off"}));
  EXPECT_EQ(config.train.learning_rate, 1e-4);
  EXPECT_EQ(config.train.micro_batch_size, RunConfig().train.micro_batch_size);
  EXPECT_EQ(config.train.max_seconds, 5400);
}

struct Fault {
  const char* text;
  const char* says;
};

TEST_F(ConfigTest, EveryFaultIsNamedWithItsPlace) {
  const std::vector<Fault> faults = {
      {"adapter: {type: lora, rr: 8}",
       "run.yaml:1:23: section adapter has no key \"rr\"; did you mean r?"},
      {"train:\n  learning-rate: 1",
       "run.yaml:2:3: section train has no key \"learning-rate\"; did you mean learning_rate?"},
      {"learning-rate: 1",
       "run.yaml:1:1: the top level has no key \"learning-rate\"; did you mean "
       "train.learning_rate?"},
      {"data:\n  epochs: 3",
       "run.yaml:2:3: \"epochs\" belongs in section train, not in section data"},
      {"train:\n  base_model: x", "\"base_model\" belongs in the top level, not in section train"},
      {"tsak: annotate", "did you mean task?"},
      {"zzzzzz: 1", "has no key \"zzzzzz\"; it has base_model"},
      {"task: annotate\ntask: pretrain",
       "run.yaml:2:1: duplicate key \"task\", first given on line 1"},
      {"train: {epochs: 1, epochs: 1}", "run.yaml:1:20: duplicate key"},
      {"adapter: {r: 4, lora_r: 4}", "adapter.r is given twice"},
      {"task: anotate",
       "task must be one of annotate, pretrain, got \"anotate\"; did you mean annotate?"},
      {"adapter: {r: 0}", "adapter.r must be a whole number from 1 to 512, got \"0\""},
      {"adapter: {r: 513}", "got \"513\""},
      {"adapter: {r: 8.5}", "got \"8.5\""},
      {"adapter: {r: 8x}", "got \"8x\""},
      {"adapter: {r: 99999999999999999999}", "got \"99999999999999999999\""},
      {"adapter: {lora_dropout: 1}", "a number from 0 to below 1"},
      {"adapter: {lora_alpha: 0}", "a number above 0"},
      {"train: {learning_rate: nan}", "got \"nan\""},
      {"train: {learning_rate: inf}", "got \"inf\""},
      {"train: {epochs: true}", "got \"true\""},
      {"train: {epochs: [1]}", "train.epochs must be a whole number from 1 to 1000000, got a list"},
      {"train: {epochs: {a: 1}}", "got a section"},
      {"train: {max_seconds: soon}", "seconds or a time such as 3h50m"},
      {"adapter: {target_modules: [q, q]}", "names \"q\" twice"},
      {"adapter: {target_modules: []}", "got an empty list"},
      {"adapter: {target_modules: [qkv]}", "got \"qkv\""},
      {"adapter: {type: prefixx}",
       "adapter.type must be one of encoder, hra, lora, oft, prefix, prefix_tuning, token, none, "
       "or several joined by +"},
      {"adapter: {type: lora+tokn}", "got \"tokn\"; did you mean token?"},
      {"adapter: {type: lora+}", "got \"\""},
      {"adapter: {type: token+token}", "adapter.type names \"token\" twice"},
      {"adapter: {type: lora+none}", "joins none to an adapter"},
      {"adapter: {width: 0}", "a number above 0 to 4"},
      {"adapter: 3", "run.yaml:1:10: adapter is a section of keys, got a value"},
      {"[1, 2]", "made of keys and values"},
      {"schema_version: 2", "schema_version 2 is newer"},
      {"schema_version: x", "schema_version must be 1"},
      {"base_model: ${env:SCGRAFT_TEST_NOT_THERE}",
       "the environment has no SCGRAFT_TEST_NOT_THERE"},
      {"base_model: ${env:HOME", "has no end"},
      {"adapter: {first_layer: 3, last_layer: 1}", "last_layer 1 is below first_layer 3"},
      {"data: {hvg: seurat_v3}", "needs data.hvg_count"},
      {"data: {hvg_count: 100}", "data.hvg_count needs data.hvg"},
      {"data: {val_fraction: 0.6, test_fraction: 0.5}", "leave no cells to train on"},
      {"adapter: {type: none}", "leaves nothing to train"},
      {"a: [1, 2", "this is no YAML"},
      {"a: !!python/object:os.system x", "tags are not read"},
      {"a: 1\n---\nb: 2", "more than one document"},
      {"? [a, b]\n: 1", "a key must be a word"},
      {"train: {lr: \"\\e[2J\"}", "got \"\\x1b[2J\""},
  };
  for (const Fault& f : faults) EXPECT_THAT(fault(f.text), HasSubstr(f.says)) << f.text;
}

TEST_F(ConfigTest, AllViolationsAreReportedAtOnce) {
  const std::string message = fault("task: x\nadapter: {rr: 1, r: 0}\ntrain: {epochs: 0}\n");
  EXPECT_THAT(message, HasSubstr("run.yaml:1:7"));
  EXPECT_THAT(message, HasSubstr("run.yaml:2:11"));
  EXPECT_THAT(message, HasSubstr("run.yaml:2:21"));
  EXPECT_THAT(message, HasSubstr("run.yaml:3:17"));
}

TEST_F(ConfigTest, LimitsHoldBeforeAnythingIsBuilt) {
  EXPECT_THAT(fault(std::string((1 << 20) + 1, '#')), HasSubstr("1048576 bytes"));
  EXPECT_EQ(fault(std::string(1 << 20, '#')), "");
  EXPECT_THAT(fault(cat("a: ", std::string(40, '['), std::string(40, ']'))),
              HasSubstr("nested deeper than 32"));
  EXPECT_THAT(fault(cat("a: ", std::string(100'000, '['))), HasSubstr("nested deeper than 32"));
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 9; ++i) {
    std::string list = cat("*a", i - 1);
    for (int k = 1; k < 10; ++k) list = cat(list, ", *a", i - 1);
    bomb = cat(bomb, "a", i, ": &a", i, " [", list, "]\n");
  }
  EXPECT_THAT(fault(bomb), HasSubstr("more than 100000 values"));
  std::string deep = "a0: &a0 [x]\n";
  for (int i = 1; i < 40; ++i) deep = cat(deep, "a", i, ": &a", i, " [*a", i - 1, "]\n");
  EXPECT_THAT(fault(deep), HasSubstr("nested deeper than 32"));
}

TEST_F(ConfigTest, AliasesInsideTheFileAreExpanded) {
  const RunConfig config = load("train: {seed: &n 7, epochs: *n}\n");
  EXPECT_EQ(config.train.seed, 7);
  EXPECT_EQ(config.train.epochs, 7);
}

TEST_F(ConfigTest, FlagsBeatSetsBeatTheFileBeatsTheDefaults) {
  const std::string path = file("train:\n  epochs: 2\n  seed: 2\n  patience: 2\n");
  Origins origins;
  const RunConfig config = load_run_config(path, {"train.epochs=3", "seed=3"},
                                           {{"train.epochs", "4", "--epochs"}}, &origins);
  EXPECT_EQ(config.train.epochs, 4);
  EXPECT_EQ(config.train.seed, 3);
  EXPECT_EQ(config.train.early_stopping_patience, 2);
  EXPECT_EQ(origins["train.epochs"], "--epochs");
  EXPECT_EQ(origins["train.seed"], "--set");
  EXPECT_EQ(origins["train.early_stopping_patience"], path + ":4");
  EXPECT_EQ(origins["train.learning_rate"], "default");
}

TEST_F(ConfigTest, SetsAreCheckedLikeTheFile) {
  const auto set = [](const std::string& text) -> std::string {
    try {
      load_run_config(std::nullopt, {text}, {});
    } catch (const ConfigError& error) {
      return error.what();
    }
    return {};
  };
  EXPECT_EQ(set("adapter.target_modules=q,k"), "");
  EXPECT_EQ(set("adapter.target_modules=[q, k]"), "");
  EXPECT_EQ(set("data.subset=condition=control"), "");
  EXPECT_THAT(set("adapter.rr=3"), HasSubstr("--set: section adapter has no key \"rr\""));
  EXPECT_THAT(set("adapter.r"), HasSubstr("section.key=value is wanted"));
  EXPECT_THAT(set("adapter.r=many"), HasSubstr("got \"many\""));
}

TEST_F(ConfigTest, TheResolvedFileGivesTheSameConfigurationAgain) {
  RunConfig config = load(
      "base_model: \"a b: #c\"\nadapter: {r: 3, lora_alpha: 0.1, target_modules: [out]}\n"
      "data: {label_key: \"no\", exclude_labels: [\"x, y\", \"\\\"q\\\"\"]}\n"
      "train: {learning_rate: 0.00030000000000000003, seed: 9007199254740991}\n");
  Origins origins;
  const RunConfig again =
      load_run_config(put(folder_ / "again.yaml", resolved_yaml(config, {})), {}, {}, &origins);
  for (const ConfigKey& key : config_keys())
    EXPECT_EQ(value_of(key, again), value_of(key, config)) << key.full_name();
}

TEST_F(ConfigTest, TheExampleIsValidAndSaysTheDefaults) {
  const RunConfig config = load(example_yaml());
  for (const ConfigKey& key : config_keys())
    EXPECT_EQ(value_of(key, config), value_of(key, RunConfig())) << key.full_name();
}

TEST_F(ConfigTest, TheTableNamesEveryKeyOnce) {
  for (const ConfigKey& key : config_keys()) {
    EXPECT_EQ(find_key(key.section, key.name), &key);
    EXPECT_EQ(find_key(key.full_name()), &key);
    for (const std::string& alias : key.aliases) EXPECT_EQ(find_key(key.section, alias), &key);
    EXPECT_FALSE(key.help.empty());
    EXPECT_EQ(key.choices.empty(), key.type != ConfigType::choice &&
                                       key.type != ConfigType::joined &&
                                       key.type != ConfigType::words);
  }
}

TEST_F(ConfigTest, TheSchemaDescribesEveryKey) {
  const nlohmann::ordered_json schema = config_json_schema();
  for (const ConfigKey& key : config_keys()) {
    const auto& place = key.section.empty()
                            ? schema["properties"]
                            : schema["properties"][std::string(key.section)]["properties"];
    ASSERT_TRUE(place.contains(std::string(key.name))) << key.full_name();
    EXPECT_EQ(place[std::string(key.name)]["default"], value_of(key, RunConfig()));
  }
}

TEST_F(ConfigTest, VerbsOfConfig) {
  const std::string bad = file("adapter: {rr: 8}\n");
  const Outcome check = run_here({"config", "check", bad});
  EXPECT_EQ(check.code, 2);
  EXPECT_EQ(check.out, "");
  EXPECT_THAT(check.err, HasSubstr("error E-CONFIG: " + bad + ":1:11"));

  const std::string made = folder_ / "made.yaml";
  EXPECT_EQ(run_here({"config", "init", "-o", made}).code, 0);
  EXPECT_EQ(run_here({"config", "check", made}).out, made + ": OK\n");
  EXPECT_EQ(run_here({"config", "init", "-o", made}).code, 2) << "overwrote a file";
  EXPECT_EQ(run_here({"config", "init", "-o", made, "--force"}).code, 0);

  const nlohmann::json shown =
      run_here({"config", "show", made, "-s", "train.epochs=3", "--json"}).result();
  EXPECT_EQ(shown["config"]["train.epochs"], 3);
  EXPECT_EQ(shown["origins"]["train.epochs"], "--set");
  EXPECT_THAT(shown["origins"]["train.seed"].get<std::string>(), HasSubstr("made.yaml:"));

  const Outcome none = run_here({"config", "check", folder_ / "none.yaml"});
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.err, HasSubstr("E-CONFIG-FILE"));
}

}  // namespace
}  // namespace scgraft
