//! Renders messages as the text that a model was trained on.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::{Environment, ErrorKind, context};
use serde::Deserialize;

use super::error::{LoadError, TemplateError};
use crate::request::ChatMessage;

const NAME: &str = "chat";

/// A model's template with the special tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
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
        Ok(Some(Self { environment, special_tokens }))
    }

    /// The text up to where the assistant's next message begins.
    ///
    /// # Errors
    /// [`TemplateError`] when the template rejects the messages (`raise_exception`) or fails on them.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        let special_tokens = minijinja::Value::from_serialize(&self.special_tokens);
        let variables = context! { messages, add_generation_prompt => true, ..special_tokens };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(variables))
            .map_err(|cause| TemplateError(cause.detail().map_or_else(|| cause.to_string(), str::to_owned)))
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
        let text = template.render(&[message("system", " be brief "), message("user", "hi")]).unwrap();
        assert_eq!(text, "<s><|SYSTEM|>be brief</s>\n<|USER|>hi</s>\n<|ASSISTANT|>");
    }

    #[test]
    fn a_template_may_reject_messages() {
        let template = loaded(&json!({"chat_template": TEMPLATE, "eos_token": "</s>"}), None).unwrap().unwrap();
        let error = template.render(&[message("user", "hi"), message("system", "late")]).unwrap_err();
        assert_eq!(error, TemplateError("system comes first".to_owned()));
    }

    #[test]
    fn the_template_is_found_where_models_keep_it() {
        let check = |config: Value, jinja: Option<&str>, expected: Option<&str>| {
            let text = loaded(&config, jinja).unwrap().map(|template| template.render(&[]).unwrap());
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
        assert_eq!(template.unwrap().unwrap().render(&[message("user", "<a\"b>")]).unwrap(), r#""<a\"b>""#);
    }
}
