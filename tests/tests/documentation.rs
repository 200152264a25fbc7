//! `docs/metrics.md` and `docs/configuration.md` list what the programs have.
//!
//! The pages are written by hand, save for the tables between `<!-- begin NAME -->` and `<!-- end NAME -->`. Those come
//! from the registries and the types of the configuration, whose comments say what a metric or a key means.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use clap::{Arg, Args, Command};
use cosec_coordinator::config::{Config, Flags};
use cosec_coordinator::merge::{RuleParameter, RuleParameters, SelectedRule};
use cosec_coordinator::metrics::CoordinatorMetrics;
use cosec_proto::metrics::MetricRegistry;
use cosec_worker::config::WorkerConfig;
use cosec_worker::metrics::WorkerMetrics;
use serde_json::Value;

/// Writes the pages anew.
const UPDATE: &str = "UPDATE_DOCS=1 cargo test --release --locked --workspace --test documentation";

#[test]
fn metrics_are_documented() {
    let coordinator = MetricRegistry::default();
    CoordinatorMetrics::register(&coordinator).unwrap();
    let worker = MetricRegistry::default();
    WorkerMetrics::register(&worker).unwrap();
    check_page("metrics.md", &[("coordinator", metric_table(&coordinator)), ("worker", metric_table(&worker))]);
}

#[test]
fn settings_are_documented() {
    let schema = Schema(schemars::schema_for!(Config).to_value());
    let coordinator = schema.sections("", &schema.0);
    let coordinator_flags = flag_table(&Flags::augment_args(Command::new("cosec-coordinator")));
    let worker = flag_table(&WorkerConfig::command());
    check_page(
        "configuration.md",
        &[("coordinator", coordinator), ("coordinator flags", coordinator_flags), ("worker", worker)],
    );
}

/// Compares the tables of a page with what they should be, or writes them.
fn check_page(name: &str, tables: &[(&str, String)]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs").join(name);
    let page = fs::read_to_string(&file).unwrap();
    let mut expected = page.clone();
    for (table, text) in tables {
        let (begin, end) = (format!("<!-- begin {table} -->\n"), format!("<!-- end {table} -->"));
        let from = expected.find(&begin).unwrap_or_else(|| panic!("docs/{name} has no {begin}")) + begin.len();
        let to = expected.find(&end).unwrap_or_else(|| panic!("docs/{name} has no {end}"));
        expected.replace_range(from..to, text);
    }
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, expected).unwrap();
    } else {
        assert!(page == expected, "docs/{name} is stale; write it anew with\n{UPDATE}");
    }
}

fn metric_table(registry: &MetricRegistry) -> String {
    let rows = registry.families().into_iter().map(|family| {
        let labels =
            if family.labels.is_empty() { String::new() } else { format!("{{{}}}", family.labels.join(",")) };
        [format!("`{}{labels}`", family.name), family.kind.to_string(), family.help.to_owned()]
    });
    table(["metric", "type", "meaning"], rows)
}

/// Defaults stand in a column if any flag has one; those of the coordinator stand with its keys.
fn flag_table(command: &Command) -> String {
    let rows: Vec<[String; 3]> = command.get_arguments().map(flag_row).collect();
    if rows.iter().any(|[_, default, _]| !default.is_empty()) {
        return table(["flag", "default", "meaning"], rows);
    }
    table(["flag", "meaning"], rows.into_iter().map(|[flag, _, meaning]| [flag, meaning]))
}

fn flag_row(flag: &Arg) -> [String; 3] {
    let names = flag.get_value_names().filter(|_| flag.get_action().takes_values());
    let value = names.and_then(|names| names.first()).map_or("", |name| name.as_str());
    let help = flag.get_long_help().or(flag.get_help()).map(ToString::to_string).unwrap_or_default();
    // Defaults that depend on something else are told by the help.
    let (help, told) = without_default(&help);
    let default = match flag.get_default_values().first().map(|value| value.to_string_lossy()) {
        Some(value) if !value.is_empty() => format!("`{value}`"),
        Some(_) | None => told.to_owned(),
    };
    let named = format!("--{} {value}", flag.get_long().unwrap());
    [format!("`{}`", named.trim_end()), default, sentence(help) + &possible_values(flag)]
}

fn possible_values(flag: &Arg) -> String {
    let mut text = String::new();
    for value in flag.get_possible_values().into_iter().filter(|_| flag.get_action().takes_values()) {
        let help = value.get_help().map(|help| format!(": {help}")).unwrap_or_default();
        text += &sentence(&format!(" `{}`{help}", value.get_name()));
    }
    text
}

/// The JSON Schema of a configuration.
struct Schema(Value);

impl Schema {
    /// A table of the keys of `object`, which stands at `path`, and a section for each object in it.
    fn sections(&self, path: &str, object: &Value) -> String {
        let mut rows = Vec::new();
        let mut sections = String::new();
        for (key, value) in properties(object) {
            let inner = self.resolved(value);
            let item = self.resolved(&inner["items"]);
            let within = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if is_object(&inner) {
                write!(sections, "\n### `[{within}]`\n\n{}\n\n", prose(value)).unwrap();
                sections += &self.sections(&within, &inner);
            } else if is_object(&item) {
                write!(sections, "\n### `[[{within}]]`\n\n{}\n\n", prose(value)).unwrap();
                sections += &self.sections(&within, &item);
            } else {
                rows.push(self.row(object, &key, value));
            }
        }
        for variant in variants(object) {
            let variant = self.resolved(variant);
            // One key names the variant, the others belong to it.
            let (names, keys): (Vec<_>, Vec<_>) =
                properties(&variant).into_iter().partition(|(_, value)| value["const"].is_string());
            rows.extend(names.iter().map(|(key, value)| {
                [format!("`{key} = {}`", value["const"]), String::new(), String::new(), prose(&variant)]
            }));
            rows.extend(keys.iter().map(|(key, value)| self.row(&variant, key, value)));
        }
        match path {
            "defaults" => rows.extend(rule_parameters()),
            "policy.bounds" => rows.extend(rule_bounds()),
            _ => {}
        }
        table(["key", "type", "default", "meaning"], rows) + &sections
    }

    fn row(&self, object: &Value, key: &str, value: &Value) -> [String; 4] {
        let inner = self.resolved(value);
        let required = object["required"].as_array().is_some_and(|keys| keys.iter().any(|name| name == key));
        let comment = if prose(value).is_empty() { prose(&inner) } else { prose(value) };
        let (help, told) = without_default(&comment);
        let default = match &value["default"] {
            _ if !told.is_empty() => told.to_owned(),
            Value::Null if required => "required".to_owned(),
            Value::Null => "none".to_owned(),
            Value::String(text) if text.is_empty() => "none".to_owned(),
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            default => format!("`{default}`"),
        };
        let mut meaning = sentence(help);
        for variant in variants(&inner).filter(|variant| variant.get("const").is_some()) {
            write!(meaning, " `{}`: {}", variant["const"].as_str().unwrap(), prose(variant)).unwrap();
        }
        [format!("`{key}`"), self.type_name(&inner), default, meaning]
    }

    fn type_name(&self, value: &Value) -> String {
        if let Some(items) = value.get("items") {
            return format!("list of {}s", self.type_name(&self.resolved(items)));
        }
        match &value["type"] {
            Value::String(name) => name.clone(),
            // With null where the key may be absent.
            Value::Array(names) => names[0].as_str().unwrap().to_owned(),
            _ => "string".to_owned(),
        }
    }

    /// `value` with what it refers to.
    fn resolved(&self, value: &Value) -> Value {
        let optional =
            value["anyOf"].as_array().and_then(|cases| cases.iter().find(|case| case.get("$ref").is_some()));
        let Some(reference) = optional.unwrap_or(value)["$ref"].as_str() else { return value.clone() };
        let mut target = self.resolved(&self.0.pointer(reference.trim_start_matches('#')).unwrap().clone());
        if let (Some(into), Some(from)) = (target.as_object_mut(), value.as_object()) {
            for (key, own) in from {
                match (into.get_mut(key), own) {
                    (Some(Value::Object(into)), Value::Object(own)) => into.extend(own.clone()),
                    _ => drop(into.insert(key.clone(), own.clone())),
                }
            }
        }
        target
    }
}

/// Rules say themselves which parameters they have.
fn rule_parameters() -> Vec<[String; 4]> {
    let rules = SelectedRule::all(&RuleParameters::default());
    let parameters = rules.iter().flat_map(|rule| rule.description().parameters);
    let row = |parameter: &RuleParameter| {
        let meaning = format!("{} It must be {}.", parameter.documentation, parameter.allowed);
        [format!("`{}`", parameter.name), "number".to_owned(), format!("`{}`", parameter.default), meaning]
    };
    parameters.map(row).collect()
}

/// The bounds of [`rule_parameters`].
fn rule_bounds() -> Vec<[String; 4]> {
    let row = |parameter: &RuleParameter| {
        let meaning = format!("Clients may ask for a `{}` of {} this.", parameter.name, parameter.weakens.limit());
        [format!("`{}`", parameter.name), "number".to_owned(), "that of `[defaults]`".to_owned(), meaning]
    };
    SelectedRule::parameters_of_all().map(row).collect()
}

fn properties(object: &Value) -> BTreeMap<String, &Value> {
    let properties = object["properties"].as_object();
    properties.into_iter().flatten().map(|(key, value)| (key.clone(), value)).collect()
}

fn variants(value: &Value) -> impl Iterator<Item = &Value> {
    value["oneOf"].as_array().into_iter().flatten()
}

fn is_object(value: &Value) -> bool {
    value.get("properties").is_some() || variants(value).any(|variant| variant.get("properties").is_some())
}

/// A comment in one line.
fn prose(value: &Value) -> String {
    let comment = value["description"].as_str().unwrap_or_default();
    comment.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A comment and the default that it tells, which has a column of its own.
fn without_default(comment: &str) -> (&str, &str) {
    let told = comment.split_once(" [default: ").or_else(|| comment.split_once(" Default: "));
    told.map_or((comment, ""), |(comment, told)| (comment, told.trim_end_matches(['.', ']'])))
}

fn sentence(text: &str) -> String {
    if text.is_empty() || text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(N));
    for row in rows {
        let row = row.map(|cell| cell.replace('|', "\\|").replace('\n', " "));
        writeln!(text, "| {} |", row.join(" | ")).unwrap();
    }
    text
}
