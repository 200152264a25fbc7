//! Renders messages as the text that a model was trained on.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use minijinja::{Environment, ErrorKind, context};
use parking_lot::Mutex;
use serde::Deserialize;

use super::error::{EncodeError, LoadError, TemplateError};
use crate::request::ChatMessage;

const NAME: &str = "chat";

/// Steps (instructions) that a template may take: far above what thousands of messages need, and fractions of a second.
const FUEL: u64 = 2_000_000;

/// A rendering that takes longer hangs: steps may be bounded, but one of them can double a string.
const RENDER_LIMIT: Duration = Duration::from_secs(5);

/// A model's template with the special tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    renderings: Renderings,
    special_tokens: BTreeMap<&'static str, String>,
}

/// What is read of tokenizer_config.json; the file has much else.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<ChatTemplates>,
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
    pad_token: Option<SpecialToken>,
    unk_token: Option<SpecialToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl ChatTemplate {
    /// Reads chat_template.jinja, or else tokenizer_config.json (of several templates the one named `default`).
    ///
    /// A directory without either gives `None`.
    ///
    /// # Errors
    /// [`LoadError`] names the file that cannot be read or whose template does not parse.
    pub fn load(directory: &Path) -> Result<Option<Self>, LoadError> {
        let config_file = directory.join("tokenizer_config.json");
        let config = match read(&config_file)? {
            None => TokenizerConfig::default(),
            Some(text) => serde_json::from_str(&text)
                .map_err(|cause| LoadError::File { file: config_file.clone(), cause: cause.to_string() })?,
        };
        let jinja_file = directory.join("chat_template.jinja");
        let (file, source) = match (read(&jinja_file)?, config.chat_template) {
            (Some(source), _) => (jinja_file, source),
            (None, Some(ChatTemplates::One(source))) => (config_file, source),
            (None, Some(ChatTemplates::Named(templates))) => {
                let default = templates.into_iter().find(|template| template.name == "default");
                let Some(default) = default else { return Ok(None) };
                (config_file, default.template)
            }
            (None, None) => return Ok(None),
        };
        let tokens = [
            ("bos_token", config.bos_token),
            ("eos_token", config.eos_token),
            ("pad_token", config.pad_token),
            ("unk_token", config.unk_token),
        ];
        let special_tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token?.text()))).collect();
        let environment = environment(source)
            .map_err(|cause| LoadError::File { file, cause: format!("chat template: {cause}") })?;
        Ok(Some(Self { environment, renderings: Renderings::default(), special_tokens }))
    }

    /// The text up to where the assistant's next message begins, of at most `most_bytes`.
    ///
    /// # Errors
    /// When the template rejects the messages (`raise_exception`), fails on them, does not come to an end, or makes too
    /// much of them.
    pub fn render(&self, messages: &[ChatMessage], most_bytes: usize) -> Result<String, EncodeError> {
        let _rendering = self.renderings.begin().ok_or_else(|| {
            let seconds = RENDER_LIMIT.as_secs();
            TemplateError(format!("it has not come to an end for others within {seconds} seconds"))
        })?;
        let special_tokens = minijinja::Value::from_serialize(&self.special_tokens);
        let variables = context! { messages, add_generation_prompt => true, ..special_tokens };
        let mut text = BoundedText { bytes: Vec::new(), most_bytes, is_full: false };
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render_captured_to(variables, &mut text).map(|_| ()));
        if text.is_full {
            return Err(EncodeError::TooLong(most_bytes));
        }
        let failed = |cause: minijinja::Error| match cause.kind() {
            ErrorKind::OutOfFuel => TemplateError(format!("it takes more than {FUEL} steps")),
            _ => TemplateError(cause.detail().map_or_else(|| cause.to_string(), str::to_owned)),
        };
        rendered.map_err(failed)?;
        String::from_utf8(text.bytes).map_err(|cause| TemplateError(cause.to_string()).into())
    }
}

/// Text that a template writes, up to a bound.
struct BoundedText {
    bytes: Vec<u8>,
    most_bytes: usize,
    is_full: bool,
}

impl Write for BoundedText {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + text.len() > self.most_bytes {
            self.is_full = true;
            return Err(io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// When renderings began that have not come to an end.
#[derive(Default)]
struct Renderings(Mutex<(u64, BTreeMap<u64, Instant>)>);

/// One of them, until it is dropped.
struct Rendering<'a>(&'a Renderings, u64);

impl Renderings {
    /// Begins another one; `None` while one does not come to an end: it could only be joined by more such threads.
    fn begin(&self) -> Option<Rendering<'_>> {
        let (next, begun) = &mut *self.0.lock();
        if begun.values().any(|began| began.elapsed() > RENDER_LIMIT) {
            return None;
        }
        *next += 1;
        begun.insert(*next, Instant::now());
        Some(Rendering(self, *next))
    }
}

impl Drop for Rendering<'_> {
    fn drop(&mut self) {
        self.0.0.lock().1.remove(&self.1);
    }
}

impl SpecialToken {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

/// Jinja as Hugging Face sets it up: blocks leave no blank lines, Python's methods, `raise_exception`, `tojson`.
fn environment(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    // The built-in filter writes `<` as \u003c, for web pages.
    environment.add_filter("tojson", |value: minijinja::Value| -> Result<String, minijinja::Error> {
        serde_json::to_string(&value)
            .map_err(|cause| minijinja::Error::new(ErrorKind::BadSerialization, cause.to_string()))
    });
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

fn read(file: &Path) -> Result<Option<String>, LoadError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(LoadError::File { file: file.to_owned(), cause: cause.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.to_owned(), content: content.to_owned() }
    }

    fn loaded(config: &Value, jinja: Option<&str>) -> Result<Option<ChatTemplate>, LoadError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        if let Some(jinja) = jinja {
            std::fs::write(directory.path().join("chat_template.jinja"), jinja).unwrap();
        }
        ChatTemplate::load(directory.path())
    }

    /// In the manner of DeepSeek-Coder's, Qwen's and Llama's templates: loops, conditions, Python methods, trimming.
    const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}
    {% if message['role'] == 'system' and not loop.first %}
        {{ raise_exception('system comes first') }}
    {% endif %}
    {{- '<|' + message.role.upper() + '|>' + message['content'].strip() + eos_token }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|ASSISTANT|>' }}{% endif %}";

    #[test]
    fn renders_as_python_would() {
        let config =
            json!({"chat_template": TEMPLATE, "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>"});
        let template = loaded(&config, None).unwrap().unwrap();
        let text = template.render(&[message("system", " be brief "), message("user", "hi")], 100).unwrap();
        assert_eq!(text, "<s><|SYSTEM|>be brief</s>\n<|USER|>hi</s>\n<|ASSISTANT|>");
    }

    #[test]
    fn a_template_may_reject_messages() {
        let template = loaded(&json!({"chat_template": TEMPLATE, "eos_token": "</s>"}), None).unwrap().unwrap();
        let error = template.render(&[message("user", "hi"), message("system", "late")], 100).unwrap_err();
        assert_eq!(error, EncodeError::Template(TemplateError("system comes first".to_owned())));
    }

    #[test]
    fn the_template_is_found_where_models_keep_it() {
        let check = |config: Value, jinja: Option<&str>, expected: Option<&str>| {
            let text = loaded(&config, jinja).unwrap().map(|template| template.render(&[], 100).unwrap());
            assert_eq!(text.as_deref(), expected);
        };
        check(json!({"chat_template": "a"}), None, Some("a"));
        check(json!({"chat_template": "a"}), Some("b"), Some("b"));
        check(
            json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}),
            None,
            Some("d"),
        );
        check(json!({"model_max_length": 2048}), None, None);
        assert!(ChatTemplate::load(Path::new("/nonexistent")).unwrap().is_none());
        let error = loaded(&json!({}), Some("{% if %}")).err().unwrap().to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
    }

    #[test]
    fn content_is_json_when_asked_for() {
        let template = loaded(&json!({"chat_template": "{{ messages[0]['content'] | tojson }}"}), None);
        assert_eq!(template.unwrap().unwrap().render(&[message("user", "<a\"b>")], 100).unwrap(), r#""<a\"b>""#);
    }

    #[test]
    fn a_template_comes_to_an_end() {
        let check = |template: &str, says: &str| {
            let template = loaded(&json!({"chat_template": template}), None).unwrap().unwrap();
            let error = template.render(&[message("user", "hi")], 100_000).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        let range = "range(10000)";
        check(
            &format!(
                "{{% for a in {range} %}}{{% for b in {range} %}}{{% for c in {range} %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}"
            ),
            "2000000 steps",
        );
        check(
            &format!("{{% for a in {range} %}}{{{{ messages[0].content }}}} and more{{% endfor %}}"),
            "100000 bytes",
        );
        check("{{ 'a' * 1000000 }}", "100000 bytes");
        check("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion");
    }

    #[test]
    fn a_template_that_hangs_is_not_rendered_again() {
        let template = loaded(&json!({"chat_template": "a"}), None).unwrap().unwrap();
        let hanging = template.renderings.begin().unwrap();
        assert!(template.render(&[], 100).is_ok(), "renderings may overlap");
        let began = Instant::now().checked_sub(2 * RENDER_LIMIT).unwrap();
        template.renderings.0.lock().1.insert(hanging.1, began);
        let error = template.render(&[], 100).unwrap_err().to_string();
        assert!(error.contains("5 seconds"), "{error}");
        drop(hanging);
        assert!(template.render(&[], 100).is_ok());
    }
}
