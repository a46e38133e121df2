//! Renders conversations into prompts with the model's Jinja template, compatible with
//! transformers' `apply_chat_template` (5.x: `trim_blocks`, `lstrip_blocks`, loop controls,
//! Python methods, its own `tojson`, `raise_exception`, `strftime_now`).
//!
//! Known differences: dates are in UTC instead of local time; numbers below 1e-4 or from
//! 1e16 on are printed with another exponent inside of lists and by some filters; `"%s" % x` is
//! not supported, nor are the filters that `jinja` names.
#![forbid(unsafe_code)]

mod continued;
mod jinja;
mod python_json;
mod read;
mod strftime;
#[cfg(test)]
mod tests;
mod value;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

use value::{from_json, from_json_list};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Tags that mark the assistant's text for training. They do not affect the output, and
/// the template engine does not support them.
const TRAINING_TAGS: [(&str, &str); 2] = [("generation", "if true"), ("endgeneration", "endif")];

/// Compiled chat template of a model. Cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    /// Compiled templates by name.
    templates: Environment<'static>,
    /// Special tokens, such as `bos_token`, with their text.
    special_tokens: Vec<(String, String)>,
}

/// A conversation to render.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatInput<'a> {
    /// Messages as sent by the caller.
    pub messages: &'a [Json],
    /// Descriptions of the tools the model may call; `none` in the template if empty.
    pub tools: Option<&'a [Json]>,
    /// Documents for retrieval-augmented answers; `none` in the template if absent.
    pub documents: Option<&'a [Json]>,
    /// Whether the prompt ends with the header of the assistant's reply.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends inside the last message, which the model continues.
    pub continue_final_message: bool,
    /// Additional template variables, such as `enable_thinking`.
    pub variables: Option<&'a serde_json::Map<String, Json>>,
    /// Current Unix time in seconds, for templates that print the date.
    pub unix_seconds: u64,
}

/// Why a template cannot render a conversation; the caller's error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatTemplateError {
    /// The template rejects the conversation with `raise_exception`.
    #[error("the model's chat template rejects the messages: {0}")]
    Refused(String),
    /// Rendering fails, for instance on a message without content.
    #[error("the model's chat template cannot render the messages: {0}")]
    Failed(String),
    /// The last message is to be continued, and the template does not write it.
    #[error("the model's chat template does not write the final message as it is, so it cannot be continued")]
    NotContinued,
}

/// The message of a template's own `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles templates by name; one must be named `default`. `special_tokens` are variables
    /// of every rendering.
    ///
    /// # Errors
    /// The message and line of a syntax error, or that there is no `default` template.
    pub fn compile(
        templates: impl IntoIterator<Item = (String, String)>,
        special_tokens: Vec<(String, String)>,
    ) -> Result<Self, String> {
        let mut environment = environment().map_err(|error| error.to_string())?;
        for (name, source) in templates {
            let source = without_training_tags(&with_plain_line_ends(&source));
            environment.add_template_owned(name, source).map_err(|error| described(&error))?;
        }
        if environment.get_template(DEFAULT).is_err() {
            return Err(format!("there are several templates, but none is named `{DEFAULT}`"));
        }
        Ok(Self { inner: Arc::new(Inner { templates: environment, special_tokens }) })
    }

    /// Special tokens by name, such as `bos_token`, as templates see them.
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.inner.special_tokens
    }

    /// Source of the default template, in Jinja.
    pub fn source(&self) -> String {
        let template = self.inner.templates.get_template(DEFAULT).expect("checked when compiled");
        template.source().to_owned()
    }

    /// Source of the template for conversations with tools, in Jinja.
    pub fn source_with_tools(&self) -> String {
        let template = self.inner.templates.get_template(TOOL_USE);
        template.map_or_else(|_| self.source(), |template| template.source().to_owned())
    }

    /// Variables that the templates read. If one is for conversations with tools, `tools` is among
    /// them.
    pub fn variables(&self) -> BTreeSet<String> {
        let templates = self.inner.templates.templates();
        let mut names: BTreeSet<String> =
            templates.flat_map(|(_, template)| template.undeclared_variables(false)).collect();
        if self.inner.templates.get_template(TOOL_USE).is_ok() {
            names.insert("tools".to_owned());
        }
        names
    }

    /// Renders a conversation. The result must be encoded without special tokens, since the
    /// template has already written them.
    ///
    /// # Errors
    /// If the template rejects the conversation or fails on it.
    pub fn render(&self, input: &ChatInput) -> Result<String, ChatTemplateError> {
        let templates = &self.inner.templates;
        let name = if input.tools.is_some() && templates.get_template(TOOL_USE).is_ok() {
            TOOL_USE
        } else {
            DEFAULT
        };
        let messages = match input.continue_final_message {
            true => continued::marked(input.messages),
            false => Cow::Borrowed(input.messages),
        };
        let input = ChatInput { messages: &messages, ..*input };
        let rendered = templates.get_template(name).and_then(|template| template.render(self.values(&input)));
        let rendered = rendered.map_err(|error| match raised(&error) {
            Some(message) => ChatTemplateError::Refused(message),
            None => ChatTemplateError::Failed(described(&error)),
        })?;
        match input.continue_final_message {
            true => continued::cut(&rendered).map(str::to_owned).ok_or(ChatTemplateError::NotContinued),
            false => Ok(rendered),
        }
    }

    /// Builds the template's variables. Later ones win: callers may override special tokens, but not the conversation.
    fn values(&self, input: &ChatInput) -> Value {
        let special =
            self.inner.special_tokens.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str())));
        let more =
            input.variables.into_iter().flatten().map(|(name, value)| (name.clone(), from_json(value)));
        let unix_seconds = input.unix_seconds;
        let strftime_now = move |format: &str| strftime::format_utc(format, unix_seconds);
        let own = [
            ("messages", from_json_list(input.messages)),
            ("tools", input.tools.map_or_else(none, from_json_list)),
            ("documents", input.documents.map_or_else(none, from_json_list)),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            ("strftime_now", Value::from_function(strftime_now)),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        Value::from_pairs(special.chain(more).chain(own))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.inner.templates.templates().map(|(name, _)| name);
        f.write_str("ChatTemplate ")?;
        f.debug_list().entries(names).finish()
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    jinja::add_to(&mut environment);
    environment.add_filter("tojson", python_json::tojson);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.to_owned())
            .with_source(Raised(message.to_owned())))
    });
    Ok(environment)
}

fn none() -> Value {
    Value::from(())
}

fn raised(error: &Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

/// The error message with its line, without the engine's internal template name.
fn described(error: &Error) -> String {
    let detail = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

/// Jinja2 reads every line end as `\n`.
fn with_plain_line_ends(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Replaces [`TRAINING_TAGS`] by no-op tags; whitespace control is preserved.
fn without_training_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + "%}".len());
        let word = tag.trim_matches(|c: char| "{%}+-".contains(c) || c.is_whitespace());
        match TRAINING_TAGS.iter().find(|(name, _)| *name == word) {
            Some((name, replacement)) => out.push_str(&tag.replace(name, replacement)),
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
